"""Frames on the pipe between a launcher and a worker.

A frame is::

    uint32 little-endian    length of the header
    header                  JSON, UTF-8; `payload_bytes` is the length of what follows
    payload                 safetensors; absent where payload_bytes is 0

bfloat16 travels bit for bit, as `ml_dtypes.bfloat16` in NumPy. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

PROTOCOL = 1
"""Version of the protocol; a worker names its own in the first frame that it sends."""

MAX_HEADER_BYTES = 64 * 2**20
MAX_PAYLOAD_BYTES = 16 * 2**30

# A frame that announces more than it holds must not make us reserve it all before it comes.
_CHUNK_BYTES = 64 * 2**20

_LENGTH = struct.Struct("<I")
_TO_SAFETENSORS = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_FROM_SAFETENSORS = {code: np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name) for name, code in _TO_SAFETENSORS.items()}

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


class WireError(Exception):
    """The other side broke the protocol, or the pipe ended inside a frame."""


class EndOfPipe(WireError):
    """The pipe ended between two frames: the other side is gone."""


class CutShort(WireError):
    """The pipe ended inside a frame: the other side died while it wrote."""


def encode(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> tuple[bytes, bytes]:
    """A frame as bytes, in two parts: length and header, then payload.

    Raises:
        WireError: the header is no JSON (NaN is none), or a tensor's dtype or name can't travel.
    """
    payload = pack(tensors) if tensors else b""
    try:
        text = json.dumps({**header, "payload_bytes": len(payload)}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"a header that can't travel: {error}; allowed are JSON's values, numbers finite; send others as tensors") from None
    if len(text) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise WireError(
            f"a frame of {len(text)} + {len(payload)} bytes, allowed are {MAX_HEADER_BYTES} + {MAX_PAYLOAD_BYTES}; "
            "send less at a time, and big values as tensors"
        )
    return _LENGTH.pack(len(text)) + text, payload


def send(pipe: BinaryIO, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes one frame, or nothing at all when it can't travel.

    Raises:
        WireError: see `encode`.
        OSError: the pipe is closed.
    """
    for part in encode(header, tensors):
        pipe.write(part)
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads one frame: its header (without payload_bytes) and its tensors.

    Raises:
        EndOfPipe: the pipe ended before a frame began.
        CutShort: the pipe ended inside a frame.
        WireError: what came is no frame.
    """
    first = pipe.read(_LENGTH.size)
    if not first:
        raise EndOfPipe("the pipe ended")
    (length,) = _LENGTH.unpack(first if len(first) == _LENGTH.size else first + _read(pipe, _LENGTH.size - len(first)))
    if length > MAX_HEADER_BYTES:
        raise WireError(
            f"a header of {length} bytes, allowed are {MAX_HEADER_BYTES}: not a frame (did the worker print on its protocol pipe?)"
        )
    header = _parse(_read(pipe, length))
    size = header.pop("payload_bytes", None)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_PAYLOAD_BYTES:
        raise WireError(f"a header without a sound payload_bytes (got {size!r}, allowed 0 to {MAX_PAYLOAD_BYTES})")
    return header, unpack(_read(pipe, size)) if size else {}


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a header that is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise WireError(f"a header that is a {type(header).__name__}, must be an object")
    return header


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The tensors as safetensors bytes.

    Raises:
        WireError: a dtype that can't travel (allowed: those of safetensors that NumPy and ml_dtypes have), or a name
            that safetensors can't hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _TO_SAFETENSORS:
            raise WireError(f"{name} is {tensor.dtype.name}, which can't travel; allowed: {', '.join(_TO_SAFETENSORS)}")
        if name == "__metadata__" or not _is_unicode(name):
            raise WireError(
                f"{name!r} is no name for a tensor; allowed: any Unicode text but __metadata__, which safetensors keeps for itself"
            )
    return safetensors.numpy.save({name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in tensors.items()})


def unpack(payload: bytes) -> dict[str, np.ndarray]:
    """The tensors in safetensors bytes, as arrays of their own, by name: safetensors gives them in another order each time.

    Raises:
        WireError: not safetensors, or a dtype that NumPy and ml_dtypes lack.
    """
    try:
        entries = sorted(_deserialize(payload), key=lambda entry: entry[0])
    except safetensors.SafetensorError as error:
        raise WireError(f"a payload that is no safetensors: {error}") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _FROM_SAFETENSORS:
            raise WireError(f"{name} is {entry['dtype']}, which can't travel; allowed: {', '.join(_FROM_SAFETENSORS)}")
        tensors[name] = np.frombuffer(bytearray(entry["data"]), dtype=_FROM_SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(pipe: BinaryIO, size: int) -> bytes:
    parts = []
    while size:
        part = pipe.read(min(size, _CHUNK_BYTES))
        if not part:
            raise CutShort(f"the pipe ended inside a frame, {size} bytes early")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
