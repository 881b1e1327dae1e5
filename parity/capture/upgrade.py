"""What an upgrade changed: versions, known defects, verdicts and bits; written as JSON, the source of what the terminal shows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from parity.capture.bits import TensorBits
from parity.report.record import Status


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Side(_Record):
    """One environment: how it was named, and the versions that each of its stacks has there."""

    name: str
    versions: dict[str, dict[str, str]]


class VersionChange(_Record):
    """A package of a stack whose version differs; "absent" where one side does not tell of it."""

    stack: str
    package: str
    old: str
    new: str


class DefectChange(_Record):
    """A known defect of a dependency, as the stack's probe found it; null where it was not looked for."""

    stack: str
    defect: str
    old: bool | None
    new: bool | None
    what: str

    @property
    def appears(self) -> bool:
        """Whether it shows now and did not before."""
        return bool(self.new) and not self.old

    @property
    def vanishes(self) -> bool:
        """Whether it showed before and does not now."""
        return bool(self.old) and not self.new


class VerdictChange(_Record):
    """A cell whose status differs; absent where one side has no such cell."""

    cell: str
    old: Status | Literal["absent"]
    new: Status | Literal["absent"]
    reason: str

    @property
    def worse(self) -> bool:
        """Whether a divergence is there that was not, or was waived."""
        return _BADNESS.get(str(self.new), 0) > _BADNESS.get(str(self.old), 0)


_BADNESS = {Status.WAIVED.value: 1, Status.FAIL.value: 2}


class Upgrade(_Record):
    """Everything that differs.

    Attributes:
        left_out: stacks that neither environment has.
        defects: all that either probe looked for, changed or not.
        statuses: how many cells of the new environment have each.
        tensors, elements: how many were compared; bits: those tensors that differ.
        unmatched: what was answered in one environment alone.
    """

    schema_version: Literal[1] = 1
    twostack: str
    machine: dict[str, str]
    tiers: tuple[str, ...]
    profile: str
    seed: int
    model: str
    mutants: tuple[str, ...]
    old: Side
    new: Side
    left_out: tuple[str, ...]
    versions: tuple[VersionChange, ...]
    defects: tuple[DefectChange, ...]
    verdicts: tuple[VerdictChange, ...]
    statuses: dict[Status, int]
    tensors: int
    elements: int
    bits: tuple[TensorBits, ...]
    unmatched: tuple[str, ...]
    exit_code: int = Field(description="0 nothing is worse; 1 a verdict is worse or a defect appears; 3, 4: a cell has no verdict")

    @property
    def unchanged(self) -> bool:
        """Whether nothing differs but, perhaps, versions."""
        defects = any(one.appears or one.vanishes for one in self.defects)
        return not (self.verdicts or self.bits or self.unmatched or defects)


def exit_code(verdicts: tuple[VerdictChange, ...], defects: tuple[DefectChange, ...], statuses: set[Status], unmatched: bool) -> int:
    """1 where a verdict is worse or a defect appears; else 3 where a cell of either side is an error, 4 where one is not covered; else 0.

    Args:
        statuses: of both sides' cells.
        unmatched: something was answered on one side alone.
    """
    if any(one.worse for one in verdicts) or any(one.appears for one in defects):
        return 1
    if Status.ERROR in statuses:
        return 3
    asked = statuses - {Status.NOT_APPLICABLE, Status.LEFT_TO_NIGHTLY}
    return 4 if Status.NOT_COVERED in statuses or unmatched or not asked else 0
