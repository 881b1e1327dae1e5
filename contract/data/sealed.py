"""A file of records in the cache that shows when it is damaged.

It holds the records, then a JSON summary, then a tail: the magic number with the version of this format, the summary's length, and the
CRC-32 of all before it. All numbers are little-endian.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from contract.errors import EnvironmentUnfit
from contract.worker import files

_TAIL = struct.Struct("<8sQ")
_CRC = struct.Struct("<I")
_MAGIC = b"ROWS\0\0\0\1"  # its last byte rises with any change of the format, or of what contract.data.rows takes for a row
_CHUNK = 2**20


class Writer:
    """Writes records as they come, then summary and tail."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._held = bytearray()
        self._crc = 0

    def add(self, records: bytes) -> None:
        """Adds records; they go out with others."""
        self._held += records
        if len(self._held) >= _CHUNK:
            self._flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Adds the summary and the tail."""
        content = json.dumps(summary).encode()
        self._held += content + _TAIL.pack(_MAGIC, len(content))
        self._flush()
        self._out.write(_CRC.pack(self._crc))

    def _flush(self) -> None:
        self._crc = zlib.crc32(self._held, self._crc)
        self._out.write(self._held)
        self._held.clear()


@contextmanager
def writing(file: Path) -> Iterator[Writer]:
    """A writer to a file that takes its place whole, or not at all; what earlier ones that were killed left of it goes.

    Raises:
        EnvironmentUnfit: it can't be written.
    """
    try:
        files.sweep(file)
        with files.replacing(file) as out:
            yield Writer(out)
    except OSError as error:
        raise EnvironmentUnfit(f"the cache folder {file.parent} can't be written ({error.strerror}); see to its space and rights") from None


def summary_of(file: Path, is_current: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The summary of a file that is whole and current; else None."""
    try:
        with open(file, "rb") as sealed:
            content = sealed.seek(-_CRC.size, os.SEEK_END)
            [crc] = _CRC.unpack(sealed.read())
            if crc != _crc_of(sealed, content):
                return None
            end = sealed.seek(content - _TAIL.size)
            magic, length = _TAIL.unpack(sealed.read(_TAIL.size))
            if magic != _MAGIC:
                return None
            sealed.seek(end - length)
            summary: dict[str, Any] = json.loads(sealed.read(length))
    except (OSError, ValueError, struct.error):  # none there, too short, or cut off just now
        return None
    return summary if is_current(summary) else None


def _crc_of(file: BinaryIO, size: int) -> int:
    file.seek(0)
    crc = 0
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            return -1
        crc, size = zlib.crc32(chunk, crc), size - len(chunk)
    return crc
