"""The index of a train file: which rows a run learns from, and where they lie.

One pass reads the file line by line, checks every row and writes one record a kept row to a file in the cache folder. That file is
mapped, so that rows are reached by number in constant memory however many there are; a later run with the same train file and
filters uses it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from contract.data import rows, sealed
from contract.data.row import Row
from contract.errors import ContractError, brief
from contract.run.spec import DataSpec
from contract.worker import files

RECORD = np.dtype([("offset", "<u8"), ("line", "<u8"), ("difficulty", "<f8"), ("length", "<u4"), ("crc", "<u4")])
"""Where a row's line begins, its number from 1, its difficulty (NaN: none), its bytes with its end, and their CRC-32."""

MOST_LISTED = 100
"""Bad lines that are listed, and kinds of notes that are told apart; all are counted."""

_PACK = struct.Struct("<QQdII").pack
_OTHERS = "others"
_WHY = {"bad": "malformed", "rating": "rated too low", "category": "of another category"}
_CHUNK = 2**20

Progress = Callable[[int, int], None]
"""Told bytes read and bytes in all."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one pass over a train file found.

    source: device, inode, size and times of the file, as they were then.
    left_out: rows that are not kept, under the first of "bad", "rating" and "category" that applies.
    noted: how many rows had an unknown field, or an empty text.
    bad: line and fault of the first MOST_LISTED bad rows.
    """

    source: tuple[int, ...]
    total: int
    kept: int
    left_out: dict[str, int]
    noted: dict[str, int]
    bad: tuple[tuple[int, str], ...]


class RowIndex:
    """The rows of a train file that a run learns from, by number from 0, in the file's order.

    Attributes:
        path: the train file.
        file: the index file; what follows from it may lie beside it.
        total, kept: rows in the file, rows that are left.
        source, left_out, noted, bad: as in `Summary`.
        before_filter: rows that context_filter was asked about; `kept` is what it left.
    """

    def __init__(self, path: Path, file: Path, summary: Summary) -> None:
        self.path, self.file = path, file
        self.total, self.kept = summary.total, summary.kept
        self.left_out, self.noted, self.bad = summary.left_out, summary.noted, summary.bad
        self.before_filter = summary.kept + summary.left_out.get("category", 0)
        self.source = summary.source
        self._records: np.ndarray = np.memmap(file, RECORD, "r", shape=(summary.kept,)).view(np.ndarray)

    def __len__(self) -> int:
        return self.kept

    @property
    def difficulty(self) -> np.ndarray:
        """float64 [kept], NaN where a row has none; mapped, not read."""
        column: np.ndarray = self._records["difficulty"]
        return column

    def line(self, i: int) -> int:
        """The number, from 1, of the line that row i stands in."""
        return int(self._records["line"][i])

    def row(self, i: int) -> Row:
        """Row i, read from the train file.

        Raises:
            IndexError: there is no such row.
            ContractError: the train file is no longer what was indexed.
        """
        record = self._records[i]
        line = self._read(int(record["offset"]), int(record["length"]))
        # Times tell a change only as finely as the file system's clock ticks; the row's own bytes tell it always.
        if zlib.crc32(line) != record["crc"]:
            _changed(self.path)
        return rows.parse(line, int(record["line"]), str(self.path))

    def _read(self, offset: int, length: int) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:
                if files.identity(file.fileno()) != self.source:
                    _changed(self.path)
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            _unreadable(self.path, error)


def train_file(spec: DataSpec) -> Path:
    """Where a contract's train file lies; `~` is the home folder.

    Raises:
        ContractError: it's in the home folder of somebody who is not there.
    """
    try:
        return Path(spec.train_file).expanduser()
    except RuntimeError as error:
        raise ContractError(
            "data.train_file", got=f"{brief(spec.train_file)} ({error})", allowed="a file", remedy="correct the path"
        ) from None


def open_index(path: Path, spec: DataSpec, *, cache: Path | None = None, progress: Progress = lambda done, total: None) -> RowIndex:
    """The index of a train file under a contract's filters; made anew where the file or the filters are others.

    A row without a rating passes min_rating; a row without a category does not pass context_filter.

    Args:
        path: the train file, such as `train_file` gives.
        cache: the folder for index files; else "rows" in the user's cache folder.

    Raises:
        ContractError: the file can't be read, or holds no row, or a bad row (unless spec.skip_bad_rows), or the filters leave none, or it
            was changed while it was read.
        EnvironmentUnfit: the cache folder can't be written.
    """
    settings = [spec.min_rating, spec.context_filter, spec.skip_bad_rows]
    with _opened(path) as source:
        identity = files.identity(source.fileno())
        name = hashlib.sha256(json.dumps([str(path.resolve()), settings]).encode()).hexdigest()[:32]
        file = (cache or files.cache_folder() / "rows") / f"{name}.index"
        summary = _kept_summary(file, identity)
        if summary is None:
            with sealed.writing(file) as writer:
                summary = _build(path, source, writer, spec, progress)
    return RowIndex(path, file, summary)


def _opened(path: Path) -> BinaryIO:
    try:
        # A pipe would wait for its writer, and has no rows to come back to.
        if not stat.S_ISREG(os.stat(path).st_mode):
            got = "a folder" if path.is_dir() else "something that is no file"
            raise ContractError(str(path), got=got, allowed="a file of rows (JSONL)", remedy="correct data.train_file")
        return open(path, "rb", buffering=_CHUNK)
    except OSError as error:
        _unreadable(path, error)
    except ValueError as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(repr(str(path)), got=str(error), allowed="a path", remedy="correct data.train_file") from None


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise ContractError(str(path), got=error.strerror or str(error), allowed="a file to read", remedy="correct data.train_file") from None


def _changed(path: Path) -> NoReturn:
    got = "a file that was changed after it was checked"
    raise ContractError(str(path), got=got, allowed="a file that stays as it is during a run", remedy="start again") from None


def _kept_summary(file: Path, identity: tuple[int, ...]) -> Summary | None:
    """What an earlier pass over the same file found, where its index is whole."""

    def is_current(value: dict[str, Any]) -> bool:
        return tuple(value["source"]) == identity

    value = sealed.summary_of(file, is_current)
    if value is None:
        return None
    return Summary(**value | {"source": identity, "bad": tuple((line, fault) for line, fault in value["bad"])})


def _build(path: Path, source: BinaryIO, writer: sealed.Writer, spec: DataSpec, progress: Progress) -> Summary:
    survey, identity = _Survey(path, spec), files.identity(source.fileno())
    size = identity[2]
    for number, (offset, line) in enumerate(_lines(path, source, size), 1):
        row = survey.kept_row(line, number)
        if row is not None:
            difficulty = math.nan if row.difficulty is None else row.difficulty
            writer.add(_PACK(offset, number, difficulty, len(line), zlib.crc32(line)))
        if number % 4096 == 0:
            progress(offset + len(line), size)
    progress(size, size)
    if files.identity(source.fileno()) != identity:
        _changed(path)
    summary = survey.summary(identity)
    if not summary.kept:
        _refuse_empty(path, summary, spec)
    writer.finish(asdict(summary))
    return summary


def _lines(path: Path, source: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line of the first `size` bytes; of a line that is too long only the first part."""
    offset = 0
    try:
        while offset < size:  # a file that grows meanwhile would have no end
            line = part = source.readline(rows.MAX_LINE_BYTES + 2)
            end = offset + len(line)
            while part and not part.endswith(b"\n") and end < size:
                part = source.readline(_CHUNK)
                end += len(part)
            yield offset, line
            offset = end if part else size
    except OSError as error:
        _unreadable(path, error)


def _refuse_empty(path: Path, summary: Summary, spec: DataSpec) -> NoReturn:
    left_out = ", ".join(f"{count:,} {_WHY[reason]}" for reason, count in summary.left_out.items() if count)
    got = f"{summary.total:,} rows, all of them left out ({left_out})" if summary.total else "no row"
    filters = f"min_rating {spec.min_rating}, context_filter {brief(spec.context_filter)}, skip_bad_rows {spec.skip_bad_rows}"
    raise ContractError(str(path), got=got, allowed=f"at least one row that passes {filters}", remedy="add rows, or change the filters")


class _Survey:
    """Looks at each row once: which one is kept, and what is to be said about the others."""

    def __init__(self, path: Path, spec: DataSpec) -> None:
        self._path, self._spec = str(path), spec
        self._part = None if spec.context_filter is None else spec.context_filter.casefold()
        self._total = 0
        self._left_out = {"bad": 0, "rating": 0, "category": 0}
        self._noted: Counter[str] = Counter()
        self._bad: list[tuple[int, str]] = []

    def kept_row(self, line: bytes, number: int) -> Row | None:
        """The row, where it is kept.

        Raises:
            ContractError: it is bad, and bad rows are refused.
        """
        self._total += 1
        try:
            row, notes = rows.noted(line, number, self._path)
        except ContractError as error:
            if not self._spec.skip_bad_rows:
                raise
            self._left_out["bad"] += 1
            if len(self._bad) < MOST_LISTED:
                self._bad.append((number, f"got {error.got}; allowed: {error.allowed}"))
            return None
        for note in notes:
            known = note in self._noted or len(self._noted) < MOST_LISTED
            self._noted[note if known else _OTHERS] += 1
        if row.rating is not None and row.rating < self._spec.min_rating:
            self._left_out["rating"] += 1
            return None
        if self._part is not None and self._part not in (row.category or "").casefold():
            self._left_out["category"] += 1
            return None
        return row

    def summary(self, source: tuple[int, ...]) -> Summary:
        """What was found in all."""
        kept = self._total - sum(self._left_out.values())
        noted = dict(sorted(self._noted.items()))
        return Summary(source=source, total=self._total, kept=kept, left_out=self._left_out, noted=noted, bad=tuple(self._bad))
