"""NF4 and its nested statistics (QLoRA, arXiv:2305.14314, sections 2 and 3), bit-exact to contract.worker.operations.

Several steps are kernels of their own (`realize`), because each must round before the next one begins:
tinygrad writes w * (1 / absmax) as w / absmax (codegen/decomp/op.py), which gives 5 % of the inputs within
2 ulp of a midpoint another code; and a C compiler contracts a product and a sum to a fused multiply-add,
which changes 10 % of the nested absmax of a real model.

Shape suffixes: E elements of a weight, P packed bytes, B blocks, S blocks of absmax, K block size,
T tokens, I in_features, O out_features.
"""

from __future__ import annotations

import functools

import numpy as np
from tinygrad import Tensor, dtypes

from contract.worker.operation import NESTED_BLOCK_SIZE
from stacks.tinygrad_lora.linear import frozen_linear

VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values of NF4, each a float32 (QLoRA, appendix E)."""

SMALLEST_ABSMAX = 1e-38
"""A block whose absmax is no larger is scaled by the reciprocal of this."""


def quantize(weight_OI: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, packed codes and absmax of a float32 weight.

    absmax = max |w| over a block of the flattened weight; code = the number of midpoints between
    neighbouring values that lie below w * f32(1 / max(absmax, 1e-38)). (No clamp to [-1, 1]: what
    rounding puts outside has all midpoints, or none, below it.)

    Returns:
        codes_E (uint8), packed_P (uint8; the earlier element in the high nibble), absmax_B (float32).
    """
    elements = int(weight_OI.numel())
    blocks = -(-elements // block_size)
    weight_BK = weight_OI.reshape(-1).pad((0, blocks * block_size - elements)).reshape(blocks, block_size)
    absmax_B = _magnitude(weight_BK).max(axis=1).realize()
    reciprocal_B = absmax_B.maximum(SMALLEST_ABSMAX).reciprocal().realize()
    codes_BK = _count_below(weight_BK * reciprocal_B.reshape(-1, 1), _midpoints(np.array(VALUES, dtype=np.float32)))
    codes_E = codes_BK.reshape(-1).shrink(((0, elements),)).contiguous().realize()
    pairs = codes_E.pad((0, elements % 2)).reshape(-1, 2)
    packed_P = (pairs[:, 0] * 16 + pairs[:, 1]).realize()
    return codes_E, packed_P, absmax_B


def offset(absmax_B: Tensor) -> Tensor:
    """mean(absmax), float32, of shape [1]: what nesting takes off."""
    # a tensor and not a number: tinygrad would multiply by the number's rounded reciprocal
    count = Tensor(np.array([absmax_B.shape[0]], dtype=np.float32), device=absmax_B.device)
    return absmax_B.sum(axis=0, keepdim=True, dtype=dtypes.float32) / count


def nest(absmax_B: Tensor, offset_1: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of absmax - offset in the signed dynamic 8-bit map, and what scales them.

    Per 256 blocks: nested_absmax = max |absmax - offset|; code = the number of midpoints of the map below
    (absmax - offset) * f32(1 / nested_absmax); code 0 where nested_absmax is 0.

    Returns:
        absmax_codes_B (uint8), nested_absmax_S (float32).
    """
    blocks = int(absmax_B.shape[0])
    groups = -(-blocks // NESTED_BLOCK_SIZE)
    centred_SK = (absmax_B - offset_1).pad((0, groups * NESTED_BLOCK_SIZE - blocks)).reshape(groups, NESTED_BLOCK_SIZE).realize()
    nested_S = _magnitude(centred_SK).max(axis=1).realize()
    reciprocal_S = (nested_S == 0).where(0, nested_S.reciprocal()).realize()
    scaled_SK = (centred_SK * reciprocal_S.reshape(-1, 1)).realize()
    midpoints = Tensor(_midpoints(dynamic_map()), device=absmax_B.device)
    codes_SK = (midpoints < scaled_SK.unsqueeze(-1)).sum(axis=-1, dtype=dtypes.int32)
    codes_SK = (nested_S.reshape(-1, 1) == 0).where(0, codes_SK).cast(dtypes.uint8)
    return codes_SK.reshape(-1).shrink(((0, blocks),)), nested_S


def unnest(absmax_codes_B: Tensor, nested_absmax_S: Tensor, offset_1: Tensor) -> Tensor:
    """absmax = f32(f32(map[code] * nested_absmax) + offset), float32 of shape B."""
    blocks = int(absmax_codes_B.shape[0])
    table = Tensor(dynamic_map(), device=absmax_codes_B.device)
    nested_B = nested_absmax_S.reshape(-1, 1).expand(-1, NESTED_BLOCK_SIZE).reshape(-1).shrink(((0, blocks),))
    product_B = (table[absmax_codes_B.cast(dtypes.int32)] * nested_B).realize()
    return product_B + offset_1


def encode(weight_OI: Tensor, *, block_size: int, double_quant: bool, given_offset_1: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a float32 weight becomes where it is kept as NF4: packed_P (uint8), and the absmax_B (float32) that its codes scale.

    With `double_quant` absmax is what its own nested statistics give back, about the given offset or the mean as this stack sums it.
    """
    _, packed_P, absmax_B = quantize(weight_OI, block_size)
    if double_quant:
        offset_1 = offset(absmax_B).realize() if given_offset_1 is None else given_offset_1
        absmax_B = unnest(*nest(absmax_B, offset_1), offset_1).contiguous().realize()
    return packed_P, absmax_B


def dequantize(packed_P: Tensor, absmax_B: Tensor, *, block_size: int, out_features: int, in_features: int) -> Tensor:
    """weight = f32(value[code] * absmax of its block), float32 [O, I]; not computed until it is used."""
    elements = out_features * in_features
    codes_E = (packed_P // 16).stack(packed_P & 15, dim=-1).reshape(-1).shrink(((0, elements),))
    table = Tensor(np.array(VALUES, dtype=np.float32), device=packed_P.device)
    absmax_E = absmax_B.reshape(-1, 1).expand(-1, block_size).reshape(-1).shrink(((0, elements),))
    return (table[codes_E.cast(dtypes.int32)] * absmax_E).reshape(out_features, in_features)


def nf4_linear(
    x_TI: Tensor, packed_P: Tensor, absmax_B: Tensor, bias_O: Tensor | None, *, block_size: int, out_features: int, in_features: int
) -> Tensor:
    """y = x dequantize(packed, absmax)^T + bias, in the dtype of x (float32 or bfloat16): the product reads the packed codes.

    The weight is an operand of the product, so it is rounded before it multiplies, fused or not.
    """
    weight_OI = dequantize(packed_P, absmax_B, block_size=block_size, out_features=out_features, in_features=in_features)
    return frozen_linear(x_TI, weight_OI.cast(x_TI.dtype), bias_O)


@functools.cache
def dynamic_map() -> np.ndarray:
    """The 256 values of the signed dynamic 8-bit map, ascending, float32.

    For i = 0..6 the 2^i means of neighbours in linspace(0.1, 1, 2^i + 1), times 10^(i - 6), with both signs;
    and 0 and 1 (Dettmers, arXiv:1511.04561, section 2; as bitsandbytes' create_dynamic_map rounds it, in float32 throughout).
    """
    values = [np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32)]
    for i in range(7):
        boundaries = _linspace(2**i + 1)
        means = (boundaries[:-1] + boundaries[1:]) / np.float32(2)
        magnitude = np.float32(10.0 ** (i - 6)) * means
        values += [magnitude, -magnitude]
    return np.sort(np.concatenate(values))


def _linspace(count: int) -> np.ndarray:
    """linspace(0.1, 1) as torch.linspace makes it: each half counted from its own end, product and sum rounded once to float32."""
    low, high = np.float32(0.1), np.float32(1)
    step = np.float64((high - low) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, np.float64(low) + step * i, np.float64(high) - step * (count - 1 - i)).astype(np.float32)


def _midpoints(values: np.ndarray) -> np.ndarray:
    midpoints: np.ndarray = (values[:-1] + values[1:]) * np.float32(0.5)
    return midpoints


def _magnitude(x: Tensor) -> Tensor:
    """|x| of float32, by its sign bit: tinygrad's abs leaves -0 as it is."""
    return (x.bitcast(dtypes.uint32) & 0x7FFFFFFF).bitcast(dtypes.float32)


def _count_below(scaled: Tensor, thresholds: np.ndarray) -> Tensor:
    """How many thresholds lie below each element, as uint8."""
    return functools.reduce(lambda total, part: total + part, [(scaled > float(t)).cast(dtypes.uint8) for t in thresholds])
