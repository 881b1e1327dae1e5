"""What bfloat16 means inside an operation: computed in float32, rounded once where the result is given.

tinygrad rounds each bfloat16 operation, a product before its sum too, so what is computed inside is widened first.
"""

from __future__ import annotations

from tinygrad import Tensor, dtypes


def wide(x: Tensor) -> Tensor:
    """A bfloat16 tensor in float32, exactly; any other as it is."""
    return x.cast(dtypes.float32) if x.dtype == dtypes.bfloat16 else x


def inside(dtype: str) -> str:
    """The dtype, by its name, in which a graph of `dtype` computes norms, softmax and loss, and has its numbers and its adapter."""
    return "float32" if dtype == "bfloat16" else dtype
