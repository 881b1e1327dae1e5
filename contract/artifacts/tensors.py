"""Reading the tensors of an adapter's file: all of them, each one's shape and dtype looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np

from contract.errors import ContractError, brief
from contract.model import headers

DTYPES: Mapping[str, np.dtype] = MappingProxyType({"F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2")})
"""What a weight may lie in; each widens to float32 exactly."""

_REMEDY = "write the adapter again"


def read_matrices(path: Path, *, dtypes: tuple[str, ...] = ("F32",)) -> dict[str, np.ndarray]:
    """Every tensor of a file, widened to float32; whether its values are finite is looked at where they are put to use.

    Raises:
        ContractError: the file is not sound, a tensor is of another dtype, is no matrix, or is empty.
    """
    tensors: dict[str, np.ndarray] = {}
    try:
        entries = headers.read(path)
    except ContractError as error:  # an adapter's file is written by a run and not downloaded
        raise ContractError(error.place, got=error.got, allowed=error.allowed, remedy=_REMEDY) from None
    try:
        with open(path, "rb") as file:
            for name, stored in entries.items():
                place = f"{path}: {brief(name)}"
                if stored.dtype not in dtypes:
                    raise ContractError(place, got=f"dtype {stored.dtype}", allowed=", ".join(dtypes), remedy=_REMEDY)
                if len(stored.shape) != 2 or not stored.elements:
                    raise ContractError(place, got=f"shape {brief(stored.shape)}", allowed="a matrix", remedy=_REMEDY)
                file.seek(stored.start)
                content = file.read(stored.nbytes)
                if len(content) != stored.nbytes:
                    raise ContractError(place, got="a file that became shorter", allowed="one that nothing writes to", remedy="try again")
                tensors[name] = decoded(content, stored.dtype, stored.shape)
    except OSError as error:
        raise ContractError(str(path), got=error.strerror or str(error), allowed="a file to read", remedy="see to its rights") from None
    return tensors


def decoded(content: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's bytes as float32, widened exactly."""
    return np.frombuffer(content, DTYPES[dtype]).reshape(shape).astype(np.float32)
