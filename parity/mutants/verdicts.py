"""What became of a mutant: killed only where a cell that passes without it fails with it, in a run that came to its end."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from parity.find.fault import Fault
from parity.mutants.catalogue import CONTRACT
from parity.mutants.facts import Askable, Cell, Ended, Facts
from parity.report.record import Status

QUIET = (Status.PASS, Status.WAIVED, Status.NOT_APPLICABLE, Status.LEFT_TO_NIGHTLY, Status.UNCOVERED_ALLOWED)
"""Of a cell that does not make a run red."""


HUNG_WORKER = "took over"
"""What the message of a WorkerHung has, and that of no other failure of a worker (contract/worker/process.py)."""


class Verdict(StrEnum):
    """Of a check on a mutant, and of a mutant.

    STALE:    the text to replace is not there once, or what it becomes does not compile; nothing was asked.
    UNASKED:  the check has nothing to ask of these stacks in this profile.
    RED_WITHOUT: the check is not green without the mutant, so that nothing it says counts.
    """

    KILLED = "killed"
    SURVIVED = "survived"
    CRASHED = "crashed"
    HUNG = "hung"
    STALE = "stale"
    UNASKED = "unasked"
    RED_WITHOUT = "red_without"


class CheckVerdict(BaseModel):
    """What a check said of a mutant."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    check: str
    tier: str
    stacks: tuple[str, ...] = Field(description="that ran; empty: all")
    verdict: Verdict
    seconds: float = Field(description="the run's time while the check was asked; of a crash or a hang, its process's")
    examples: int = Field(default=0, description="of the cell that failed first, else the most of any cell")
    alarms: int = Field(default=0, description="how many drawn ones of these failed")
    cell: str = Field(default="", description="the first cell that failed: question, dtype, stacks")
    tap: str = Field(default="", description="the first tensor, in the order of computation, that failed in it")
    reason: str = ""
    faults: tuple[Fault, ...] = Field(default=(), description="graphs: the operations that bisect names, of the changed stacks")


def judge(mutant: Askable, checks: Sequence[str], stacks: Sequence[str], planted: Facts, clean: Facts) -> list[CheckVerdict]:
    """One verdict a check.

    Args:
        stacks: that ran, as the asking named them.
        planted, clean: with the mutant, and without.
    """
    return [_of_check(mutant, check, tuple(stacks), planted, clean) for check in checks]


def _of_check(mutant: Askable, check: str, stacks: tuple[str, ...], planted: Facts, clean: Facts) -> CheckVerdict:
    cells = [cell for cell in planted.cells if cell.check == check]
    verdict, reason, first = _settled(mutant, check, cells, planted, clean)
    shown = [first] if first is not None else cells
    return CheckVerdict(
        check=check, tier=check[:1].upper(), stacks=stacks, verdict=verdict, reason=reason,
        seconds=round(sum(cell.seconds for cell in cells) or planted.seconds, 3),
        examples=max((cell.examples for cell in shown), default=0), alarms=max((cell.alarms for cell in shown), default=0),
        cell="" if first is None else f"{first.question} {first.dtype} {', '.join(first.stacks)}", tap="" if first is None else first.tap,
        faults=tuple(fault for cell in cells if cell.status is Status.FAIL for fault in cell.faults if _changes(mutant, (fault.stack,))),
    )  # fmt: skip


def _settled(mutant: Askable, check: str, cells: Sequence[Cell], planted: Facts, clean: Facts) -> tuple[Verdict, str, Cell | None]:
    """The verdict, the words for it, and the first cell that failed."""
    if why := red(check, clean):
        return Verdict.RED_WITHOUT, why, None
    if planted.ended is not Ended.DONE:
        return (Verdict.HUNG if planted.ended is Ended.HUNG else Verdict.CRASHED), planted.message, None
    passed = {cell.key for cell in clean.cells if cell.status is Status.PASS}
    failed = [cell for cell in cells if cell.status is Status.FAIL and cell.key in passed and _changes(mutant, cell.stacks)]
    if failed:
        return Verdict.KILLED, failed[0].reason, failed[0]
    broken = [cell for cell in cells if cell.status is Status.ERROR]
    if broken:
        hung = HUNG_WORKER in broken[0].reason
        return (Verdict.HUNG if hung else Verdict.CRASHED), broken[0].reason, None
    odd = [cell for cell in cells if cell.status not in QUIET]
    if odd:
        return Verdict.CRASHED, f"{odd[0].status} in a cell that says nothing of the mutant: {odd[0].reason}", None
    if not any(cell.status is Status.PASS for cell in cells):
        return Verdict.UNASKED, "the check asks nothing of these stacks in this profile", None
    return Verdict.SURVIVED, "", None


def red(check: str, clean: Facts) -> str:
    """Why a check is not green without a mutant; empty where it is, or asks nothing."""
    if clean.ended is not Ended.DONE:
        return f"without the mutant it {clean.ended}: {clean.message}"
    wrong = [cell for cell in clean.cells if cell.check == check and cell.status not in QUIET]
    return f"without the mutant it is {wrong[0].status.replace('_', ' ')}: {wrong[0].reason}" if wrong else ""


def _changes(mutant: Askable, stacks: Sequence[str]) -> bool:
    """Whether a bug is planted in one of these stacks."""
    return any(patch.stack == CONTRACT or patch.stack in stacks for patch in mutant.patches)


def together(asked: Sequence[CheckVerdict]) -> Verdict:
    """The mutant's verdict from those of its checks: killed where one killed it; else what keeps it from having survived."""
    found = {one.verdict for one in asked}
    for verdict in (Verdict.KILLED, Verdict.HUNG, Verdict.CRASHED):
        if verdict in found:
            return verdict
    return Verdict.SURVIVED
