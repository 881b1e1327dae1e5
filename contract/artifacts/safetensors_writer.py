"""Writing safetensors files tensor by tensor, so that a file may be larger than memory.

The same tensors give the same bytes: names in one order, JSON without choices, no time, no version. The order is the safetensors
library's own (wider dtypes first, then by name), so that each tensor lies aligned to its dtype; the format is
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from contract.worker.files import replacing

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1})
"""Bytes of a value by dtype: what is written here, and what is copied from a checkpoint."""

ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The order in which a file holds its tensors."""
    return sorted(entries, key=lambda entry: (-ITEM_BYTES[entry.dtype], entry.name))


def header(entries: Sequence[Entry]) -> bytes:
    """What stands before the tensors, which must come in `in_order`."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for entry in entries:
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [end, end + entry.nbytes]}
        end += entry.nbytes
    content = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % ALIGNMENT)
    return len(content).to_bytes(8, "little") + content


class HashedFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        """Appends."""
        self._file.write(content)
        self._hash.update(content)

    @property
    def sha256(self) -> str:
        """Of all that was written so far."""
        return self._hash.hexdigest()


def write_matrices(path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Writes float32 tensors in place of what is there, whole or not at all; answers the file's SHA-256."""
    entries = in_order(Entry(name=name, dtype="F32", shape=tensor.shape) for name, tensor in tensors.items())
    with replacing(path) as file:
        hashed = HashedFile(file)
        hashed.write(header(entries))
        for entry in entries:
            hashed.write(little_endian(tensors[entry.name]))
    return hashed.sha256


def little_endian(tensor: np.ndarray) -> memoryview:
    """A float32 tensor's bytes."""
    assert tensor.dtype == np.float32
    return np.ascontiguousarray(tensor, dtype="<f4").data.cast("B")
