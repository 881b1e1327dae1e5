"""Arrays of the host as tensors of a device, and back; bfloat16 goes as float32, exactly, since tinygrad takes none from NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from tinygrad import Tensor, dtypes

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def to_device(array: np.ndarray, device: str) -> Tensor:
    """An array as a tensor with a buffer of its own, once it is realised."""
    # never of shape []: tinygrad would compile such a value into the kernel
    whole = np.atleast_1d(np.ascontiguousarray(array))
    if whole.dtype == BFLOAT16:
        return Tensor(whole.astype(np.float32), device=device).cast(dtypes.bfloat16)
    return Tensor(whole, device=device)


def to_host(tensor: Tensor) -> np.ndarray:
    """A tensor's values."""
    if tensor.dtype == dtypes.bfloat16:
        return rounded(tensor.cast(dtypes.float32).numpy(), "bfloat16")
    array: np.ndarray = tensor.numpy()
    return array


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in the dtype of that name, to nearest, ties to even."""
    return array.astype(BFLOAT16 if dtype == "bfloat16" else dtype, copy=False)
