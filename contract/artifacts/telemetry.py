"""telemetry.jsonl: one line an optimiser step, appended as the run goes.

A loss that is NaN or infinite is told, not left out: such numbers stand as the strings "NaN", "Infinity" and "-Infinity", since JSON has
none. A crash may leave the last line torn; the reader says so, and any other line that is not sound is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from contract.artifacts.record import Record
from contract.errors import ContractError
from contract.reading import json_of, validated
from contract.run.spec import Whole
from contract.worker.files import replacing

FILE = "telemetry.jsonl"
MAX_LINE = 2**16

_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_REMEDY = "remove the line, or take the file as the run wrote it"


def _number(value: object) -> object:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number)]
_Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


class TelemetryRow(Record):
    """One optimiser step.

    loss: the mean over the step's supervised tokens; NaN where it had none. grad_norm: before clipping. tokens: supervised ones of the
    step. tokens_per_second: all tokens that went through the graph. memory_bytes: the process's peak so far, where it is known.
    skipped: rows left out so far, for want of a supervised token.
    validation_loss: the mean over the supervised tokens of the rows that are held back, after this step; there at an epoch's end and at
    the run's. validation_loss_before: the same before the run's first step, in the first row. Both are left out elsewhere.
    """

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    schema_version: Annotated[Literal[1], Whole] = 1
    step: Annotated[int, Field(ge=1, le=2**63 - 1)]
    loss: Number
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    grad_norm: Number
    tokens: _Count
    tokens_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    memory_bytes: _Count | None
    skipped: _Count
    validation_loss: Number | None = None
    validation_loss_before: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """A file's rows; `torn`: the number of a last line that was not finished, which is left out."""

    rows: tuple[TelemetryRow, ...]
    torn: int | None


class TelemetryWriter:
    """Appends rows; each is with the operating system when `append` returns."""

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        """Goes on with a file, or begins one.

        Args:
            after_step: of the checkpoint that the run resumes from; later rows, and a torn last line, are removed.

        Raises:
            ContractError: what is there is no telemetry file.
        """
        kept: list[TelemetryRow] = []
        if path.exists():
            kept = [row for row in read_telemetry(path).rows if row.step <= after_step]
        with replacing(path) as file:
            file.writelines(map(_line, kept))
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by `close`)
        self._last = kept[-1].step if kept else after_step

    def append(self, row: TelemetryRow) -> None:
        """Adds a row; its step must be later than the last one's.

        Raises:
            OSError: it can't be written, all of it.
        """
        assert row.step > self._last, f"step {row.step} after {self._last}"
        left = memoryview(_line(row))
        with self._told_where():
            while left:
                left = left[self._file.write(left) :]
        self._last = row.step

    def to_disk(self) -> None:
        """What was appended survives the machine's end too."""
        with self._told_where():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends; what was appended is with the operating system."""
        self._file.close()

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        """A full disk tells of no file."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise


def _line(row: TelemetryRow) -> bytes:
    absent = {name for name in ("validation_loss", "validation_loss_before") if getattr(row, name) is None}
    return row.model_dump_json(exclude=absent).encode() + b"\n"


def read_telemetry(path: Path) -> Telemetry:
    """Reads a file.

    Raises:
        ContractError, ContractErrors: it can't be read; a line other than a torn last one is not a row, or steps do not ascend.
    """
    rows: list[TelemetryRow] = []
    for number, line, whole in _lines(path):
        place = f"{path}:{number}"
        if not whole:
            return Telemetry(rows=tuple(rows), torn=number)
        value = json_of(line, place, remedy=_REMEDY)
        if not isinstance(value, dict):
            raise ContractError(place, got=f"a {type(value).__name__}", allowed="an object ({...})", remedy=_REMEDY)
        row = validated(TelemetryRow, value, place, remedy=_REMEDY)
        if rows and row.step <= rows[-1].step:
            raise ContractError(f"{place}: step", got=str(row.step), allowed=f"more than {rows[-1].step}", remedy=_REMEDY)
        rows.append(row)
    return Telemetry(rows=tuple(rows), torn=None)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Each line by its number from 1, and whether it's whole."""
    try:
        if not path.is_file():
            raise ContractError(str(path), got="no such file", allowed=FILE, remedy="correct the path")
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise ContractError(f"{path}:{number}", got="a longer line", allowed=f"{MAX_LINE:,} bytes", remedy=_REMEDY)
                yield number, line, line.endswith(b"\n")
    except OSError as error:
        raise ContractError(str(path), got=error.strerror or str(error), allowed="a file to read", remedy="see to its rights") from None
