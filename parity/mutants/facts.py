"""What one asking gave: a run of some checks with one planted bug, or with none, kept as bare facts. verdicts.py judges them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from parity.find.fault import Fault
from parity.report.record import Result, Run, Status, TensorResult


class PatchLike(Protocol):
    """A piece of a module's source, and what takes its place."""

    @property
    def stack(self) -> str:
        """The worker that it is planted in, or catalogue.CONTRACT."""

    @property
    def module(self) -> str:
        """Dotted name."""

    @property
    def find(self) -> str:
        """Stands once in the module's source."""

    @property
    def replace(self) -> str:
        """Takes its place."""


class Askable(Protocol):
    """What a campaign asks: a mutant of the catalogue, or another of its form.

    `name` is what `parity run --mutant` takes; `stacks` what it changes; `check` the cheapest one that should see it.
    """

    @property
    def name(self) -> str:
        """A catalogue name, or FILE.toml#NAME."""

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks that it changes, or catalogue.CONTRACT."""

    @property
    def check(self) -> str:
        """A check's id."""

    @property
    def patches(self) -> Sequence[PatchLike]:
        """Planted together."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Cell(_Model):
    """One cell of a run, without what no verdict on a mutant needs.

    tap: of a cell that failed, the first tensor in the order of computation that did. examples, alarms: as in a run's record.
    """

    check: str
    question: str
    dtype: str
    stacks: tuple[str, ...]
    status: Status
    tap: str = ""
    reason: str = ""
    examples: int = 0
    alarms: int = 0
    seconds: float = 0.0
    faults: tuple[Fault, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, tuple[str, ...]]:
        """Names the cell in any run on the same devices."""
        return self.check, self.question, self.dtype, self.stacks


class Ended(StrEnum):
    """How the process of an asking ended."""

    DONE = "done"
    CRASHED = "crashed"
    HUNG = "hung"


class Facts(_Model):
    """What came of one asking.

    message: why there are no cells, where there are none. seconds: wall time of the process.
    """

    ended: Ended
    message: str = ""
    cells: tuple[Cell, ...] = ()
    seconds: float = 0.0


def of_run(run: Run, *, seconds: float = 0.0) -> Facts:
    """The facts of a run that ended with a record."""
    return Facts(ended=Ended.DONE, cells=tuple(cell_facts(one) for one in run.results), seconds=seconds)


def cell_facts(result: Result) -> Cell:
    """What a verdict needs of a result."""
    tap = next((one.tensor for one in result.tensors if _failed(one)), "") if result.status is Status.FAIL else ""
    return Cell(
        check=result.id, question=result.question, dtype=result.dtype, stacks=result.stacks, status=result.status, tap=tap,
        reason=result.reason, examples=result.examples, alarms=result.alarms, seconds=result.seconds, faults=result.faults,
    )  # fmt: skip


def _failed(tensor: TensorResult) -> bool:
    return not tensor.observed <= tensor.bound  # NaN fails too
