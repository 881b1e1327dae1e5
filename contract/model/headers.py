"""The header of a safetensors file: which tensors it holds, where they lie, and that the file is whole.

    8 bytes     length of the header, little-endian
    header      JSON: {"__metadata__": {name: text}, NAME: {"dtype": ..., "shape": [...], "data_offsets": [start, stop]}, ...}
    the rest    the tensors, one after the other, without a gap

The format is https://github.com/huggingface/safetensors#format; the library reads a file that breaks some of these rules (a key
twice, of which it takes the last), and other readers read it otherwise. Only headers are read here, whatever the file's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from contract import reading
from contract.errors import ContractError, brief

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit (`MAX_HEADER_SIZE`)."""

MAX_RANK = 64
"""NumPy's."""

BITS: Mapping[str, int] = MappingProxyType(
    {
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
        "U64": 64,
    }
)  # fmt: skip
"""Bits of a value by dtype: those that safetensors 0.8 knows."""

_REMEDY = "download the checkpoint again"
_METADATA = "__metadata__"
_LARGEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One tensor as its file's header describes it; it lies in the file's bytes [start, stop)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Values that it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in its file."""
        return self.stop - self.start


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by their keys, in the header's order.

    Raises:
        ContractError: it is no file, can't be read, is shorter or longer than its header says, or the header is not one of
            safetensors; names the file, and the tensor where there is one.
    """
    content, size = _bytes_of(path)
    entries = reading.json_of(content, f"{path}: header", remedy=_REMEDY)
    if not isinstance(entries, dict):
        raise _damaged(f"{path}: header", f"a {type(entries).__name__}", "an object ({...})")
    metadata = entries.pop(_METADATA, None)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise _damaged(f"{path}: header, {_METADATA}", brief(metadata), "an object of texts")
    begin = 8 + len(content)
    tensors = {key: _tensor(path, key, entry, begin) for key, entry in entries.items()}
    _require_contiguous(path, tensors, begin, size)
    return tensors


def _bytes_of(path: Path) -> tuple[bytes, int]:
    """The header's JSON, and the file's size."""
    try:
        if not path.is_file():
            raise _damaged(str(path), "a folder" if path.is_dir() else "no such file", "a safetensors file")
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or size - 8 < length <= MAX_HEADER_BYTES:
                raise _damaged(str(path), f"{size} bytes", f"{8 + length if size >= 8 else 8} at least, by the length of its header")
            if length > MAX_HEADER_BYTES:
                raise _damaged(str(path), f"a header of {length:,} bytes", f"a safetensors file, its header {MAX_HEADER_BYTES:,} at most")
            return file.read(length), size
    except OSError as error:
        raise ContractError(
            str(path), got=error.strerror or str(error), allowed="a file to read", remedy="see to its permissions"
        ) from None


def _tensor(path: Path, key: str, entry: Any, begin: int) -> Stored:
    def refuse(part: str, got: object, allowed: str) -> ContractError:
        return _damaged(f"{path}: header, {brief(key)}{part}", brief(got), allowed)

    if not key or "\0" in key:  # a reader in C takes a name to end at NUL
        raise refuse("", key, "a name without NUL")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refuse("", entry, "dtype, shape and data_offsets, no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refuse(".dtype", dtype, ", ".join(BITS))
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise refuse(".shape", shape, f"a list of {MAX_RANK} whole numbers at most, each from 0 to 2^63 - 1")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise refuse(".data_offsets", offsets, "two whole numbers from 0 to 2^63 - 1")
    start, stop = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or stop - start != bits // 8:
        raise refuse(".data_offsets", offsets, f"a whole number of bytes, the {brief(bits)} bits that {dtype}{brief(shape)} takes")
    return Stored(file=path, dtype=dtype, shape=tuple(shape), start=begin + start, stop=begin + stop)


def _are_sizes(values: Any) -> bool:
    # bool is an int to Python, and JSON's true is no size.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _LARGEST for value in values)


def _require_contiguous(path: Path, tensors: Mapping[str, Stored], begin: int, size: int) -> None:
    """Each tensor begins where the one before ends, and the last one ends with the file."""
    end, before = begin, "the header"
    for key in sorted(tensors, key=lambda key: (tensors[key].start, tensors[key].stop)):
        if tensors[key].start != end:
            what = "overlaps" if tensors[key].start < end else "leaves a gap after"
            got = f"an offset of {tensors[key].start - begin}, which {what} {before}"
            raise _damaged(f"{path}: header, {brief(key)}.data_offsets", got, f"{end - begin}, where {before} ends")
        end, before = tensors[key].stop, brief(key)
    if size != end:
        raise _damaged(str(path), f"{size} bytes", f"{end}, by its header")


def _damaged(place: str, got: str, allowed: str) -> ContractError:
    return ContractError(place, got=got, allowed=allowed, remedy=_REMEDY)
