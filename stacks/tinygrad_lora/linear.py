"""Matrix products.

On a CPU a large right factor is copied to panels of 16 columns first, in which a row lies in a cache line or two: three times as fast as
the product as it stands, copy included, forward and backward, whatever way round the factor lies in memory. Other devices have caches and
schedules of their own, and keep the product as it is.

Shape suffixes: M rows, K inner length, N columns, P panels, W columns of a panel, C blocks of the inner length, L length of a block,
B sequences, T tokens, I in_features, O out_features, S output features of a slice.
"""

from __future__ import annotations

import math

from tinygrad import Tensor, function
from tinygrad.uop.ops import Ops, UOp

from stacks.tinygrad_lora.widen import wide

_WIDTH = 16
"""Columns of a panel."""
_PANELLED = 2**14
"""Elements from which on a factor is copied to panels: a smaller one lies in the nearest cache as it is."""
_ROWS = 16
"""Rows from which on the copy pays: a few of them read the factor about once."""
_BLOCK, _LONGEST = 1024, 4096
"""Inner length of a block, where the whole is longer than _LONGEST: a panel of so many rows leaves its cache before it is used again."""

_SLICE = 256
"""Output features of a slice: so many rows of a weight lie in a cache; fewer, where O is no multiple."""
_SMALLEST_SLICE = 16
"""Under this the slices' sum costs more than they save."""


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """y = a b, accumulated in the dtype of a and b; in bfloat16 of exact products in float32, rounded once.

    Args:
        a_MK: float32, float64 or bfloat16; of any number of leading dimensions.
        b_KN: the same dtype; of two dimensions, or of leading ones that go with those of a.
    """
    return _wide(a_MK, b_KN).cast(a_MK.dtype)


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """y = x weight^T + bias, accumulated as `matmul` does; the bias is added last, before the rounding.

    Args:
        x_TI: float32, float64 or bfloat16.
        weight_OI: the same dtype.
        bias_O: the same dtype, or None.
    """
    y_TO = _wide(x_TI, weight_OI.transpose())
    return (y_TO if bias_O is None else y_TO + wide(bias_O)).cast(x_TI.dtype)


def frozen_linear(x_BTI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """As `linear`, of a weight whose own gradient nobody wants.

    Off the CPU, the gradient with respect to x is made in slices of O, then summed: each step of the plain gradient's inner loop jumps a
    row of the weight, which no cache holds, and slices are 2 to 8 times as fast.

    Args:
        x_BTI: float32, float64 or bfloat16.
        weight_OI: the same dtype.
        bias_O: the same dtype, or None.
    """
    features, width = (int(size) for size in weight_OI.shape)
    slice_size = math.gcd(features, _SLICE)
    if _on_cpu(x_BTI) or slice_size < _SMALLEST_SLICE:
        return linear(x_BTI, weight_OI, bias_O)
    slices = features // slice_size
    # wide from here on: neither is a slice's gradient rounded before the sum, nor the product before the bias
    x_CTI = wide(x_BTI).reshape(1, -1, width).expand(slices, -1, -1).contiguous_backward()
    y_CTS = matmul(x_CTI, wide(weight_OI).reshape(slices, slice_size, width).transpose(1, 2))
    y_BTO = y_CTS.transpose(0, 1).reshape(*x_BTI.shape[:-1], features)
    return (y_BTO if bias_O is None else y_BTO + wide(bias_O)).cast(x_BTI.dtype)


def _wide(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a b in the dtype that accumulates."""
    a_MK, b_KN = wide(a_MK), wide(b_KN)
    if b_KN.ndim != 2 or not _panelled(a_MK, b_KN):
        return a_MK.matmul(b_KN, dtype=a_MK.dtype)
    K, N = (int(size) for size in b_KN.shape)
    y_MN: Tensor = _product(_stored(a_MK.reshape(-1, K)), b_KN)
    return y_MN.reshape(*a_MK.shape[:-1], N)


def _gradient(bar: UOp, call: UOp) -> tuple[UOp, UOp]:
    """y_bar b^T and a^T y_bar: products like any other."""
    a_MK, b_KN, bar_MN = Tensor(call.src[1]), Tensor(call.src[2]), Tensor(bar)
    return _wide(bar_MN, b_KN.transpose()).uop, _wide(a_MK.transpose(), bar_MN).uop


def _in_panels(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """y = a b, b in panels; in blocks of the inner length too, where that is long, whose sums are then added up."""
    (M, K), N = (int(size) for size in a_MK.shape), int(b_KN.shape[1])
    block = K if K <= _LONGEST else _BLOCK
    C, P = -(-K // block), -(-N // _WIDTH)
    b_CLPW = b_KN.pad(((0, C * block - K), (0, P * _WIDTH - N))).reshape(C, block, P, _WIDTH)
    b_CPLW = b_CLPW.transpose(1, 2).contiguous()
    a_CML = a_MK.pad((None, (0, C * block - K))).reshape(M, C, block).transpose(0, 1)
    products_CPMWL = a_CML.reshape(C, 1, M, 1, block) * b_CPLW.transpose(2, 3).reshape(C, P, 1, _WIDTH, block)
    y_PMW = products_CPMWL.sum(axis=-1, dtype=a_MK.dtype).contiguous().sum(axis=0, dtype=a_MK.dtype)
    return y_PMW.transpose(0, 1).reshape(M, P * _WIDTH)[:, :N]


_product = function(_in_panels, grad_fxn=_gradient)


def _panelled(a_MK: Tensor, b_KN: Tensor) -> bool:
    rows = math.prod(int(size) for size in a_MK.shape[:-1])
    return _on_cpu(a_MK) and rows >= _ROWS and int(b_KN.numel()) >= _PANELLED


def _on_cpu(x: Tensor) -> bool:
    return isinstance(x.device, str) and x.device.partition(":")[0] == "CPU"


def _stored(x: Tensor) -> Tensor:
    """x in a buffer, whichever way round: what is not would be computed again for every panel."""
    return x if x.uop.base.op in (Ops.BUFFER, Ops.CONTIGUOUS) else x.contiguous()
