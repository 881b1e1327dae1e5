"""Arrays of the host as tensors of a device, and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.device import Buffer
from tinygrad.dtype import DType, to_dtype

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def to_device(array: np.ndarray, device: str) -> Tensor:
    """An array as a realised tensor with a buffer of its own.

    The bytes go there as they are: Tensor(array) would be scheduled like a computation, three times as long for a small one.
    """
    # never of shape []: tinygrad would compile such a value into the kernel
    whole = np.atleast_1d(np.ascontiguousarray(array))
    if whole.size == 0:
        return Tensor(whole, device=device)
    tensor = Tensor.empty(*whole.shape, dtype=_dtype(whole.dtype), device=device)
    write(tensor, whole)
    return tensor


def write(tensor: Tensor, array: np.ndarray) -> None:
    """Puts an array of the same shape and dtype, with elements, into a tensor's own buffer: a fifth of what a new tensor costs."""
    buffer = tensor.uop.base.buffer
    assert isinstance(buffer, Buffer), "a tensor on one device has one buffer"
    assert buffer.nbytes == array.nbytes, "it has the bytes of its shape and dtype"
    buffer.ensure_allocated().copy_from(Buffer("PYTHON", buffer.size, buffer.dtype, opaque=array.reshape(-1).view(np.uint8).data))


def to_host(tensor: Tensor) -> np.ndarray:
    """A tensor's values."""
    if tensor.dtype == dtypes.bfloat16:
        return rounded(tensor.cast(dtypes.float32).numpy(), "bfloat16")
    array: np.ndarray = tensor.numpy()
    return array


def _dtype(dtype: np.dtype) -> DType:
    return dtypes.bfloat16 if dtype == BFLOAT16 else to_dtype(dtype.name)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in the dtype of that name, to nearest, ties to even."""
    return array.astype(BFLOAT16 if dtype == "bfloat16" else dtype, copy=False)
