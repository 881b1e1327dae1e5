"""The results of cells that a run does not ask: not applicable, or lost from coverage.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from parity import cells as matrix
from parity.cells import NO_DTYPE, Cell, Device
from parity.checks import graph, own_run, own_run_steps
from parity.checks.check import Question
from parity.options import CellKey, Options
from parity.report.record import Result, Status

_NONE: Mapping[str, str] = MappingProxyType({})


def explained(cell: Cell, cells: Sequence[Cell] = (), declined: Mapping[str, str] = _NONE) -> Result:
    """A cell that does not apply, with the reason; of a user's own run one that should have been asked is not covered.

    Args:
        cells: all of the run. declined: stack -> why it does not take the user's run.
    """
    status, reason = Status.NOT_APPLICABLE, cell.reason
    if cell.check.id in own_run.IDS and cell.dtype != NO_DTYPE and not _asked_elsewhere(cell, cells):
        status = Status.NOT_COVERED
        if cell.question is Question.SAME_FUNCTION and len(cell.stacks) == 1:
            reason = "; ".join((reason, *(f"{stack} does not take it: {why}" for stack, why in declined.items())))
    return _without_answer(cell.check.id, cell.check.tier, cell.check.title, cell, status, reason)


def _asked_elsewhere(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether the same stacks are asked the question in another dtype; or in d.run, whose steps take a run's production paths."""
    return any(
        other.plan is not None and set(cell.stacks) <= set(other.stacks)
        and (
            (other.check is cell.check and other.question == cell.question)
            or (other.check.id in own_run_steps.IDS and cell.question is Question.FAST_PATH and other.dtype == cell.dtype)
        )
        for other in cells
    )  # fmt: skip


def allowed(results: Sequence[Result], questions: Sequence[str]) -> list[Result]:
    """What is not covered and may be, by its question; it stays in the report."""
    return [
        result.model_copy(update={"status": Status.UNCOVERED_ALLOWED})
        if result.status is Status.NOT_COVERED and result.question in questions
        else result
        for result in results
    ]


def absent(cell: Cell, witnesses: Mapping[str, str]) -> Result:
    """A cell of a witness that is not installed: not covered.

    Args:
        witnesses: name -> what it lacks, and what to do.
    """
    reason = next(witnesses[name] for name in cell.stacks if name in witnesses)
    return _without_answer(cell.check.id, cell.check.tier, cell.check.title, cell, Status.NOT_COVERED, reason)


def _without_answer(check_id: str, tier: str, title: str, cell: Cell, status: Status, reason: str) -> Result:
    return Result(
        id=check_id, tier=tier, title=title, stacks=cell.stacks, question=cell.question, device=cell.devices, dtype=cell.dtype,
        status=status, reason=reason,
    )  # fmt: skip


def lost(
    recorded: Mapping[str, str], cells: Sequence[Cell], devices: Sequence[Device], options: Options, known: Collection[str] | None = None
) -> list[Result]:  # fmt: skip
    """Cells of coverage.json that were asked for and that this run does not ask: no check does, or a stack declares too little.

    Args:
        known: every stack that there is; of a run that names none, those of coverage.json that are not among them are lost too.
    """
    results, reasons = [], matrix.coverage(cells)
    gone = set() if known is None or options.stacks else matrix.stacks_of(recorded) - set(known)
    for key in matrix.lost(recorded, cells, devices, gone):
        check_id, question, dtype, who = key.split(" | ")
        tier = check_id.partition(".")[0].upper()
        pairs = [one.split(" on ") for one in who.split(" + ")]
        unknown = [stack for stack, _ in pairs if stack in gone]
        mine: CellKey = check_id, question, dtype, tuple(stack for stack, _ in pairs), tuple(device for _, device in pairs)
        if not _wanted(mine, tier, options):
            continue
        results.append(
            Result(
                id=check_id, tier=tier, title="a cell of coverage.json", stacks=tuple(stack for stack, _ in pairs), question=question,
                device=tuple(device for _, device in pairs), dtype=dtype, status=Status.NOT_COVERED,
                reason=_without(unknown[0]) if unknown else _why_lost(reasons.get(key, ""), options),
            )
        )  # fmt: skip
    return results


def vanished(cells: Collection[CellKey], results: Sequence[Result]) -> list[Result]:
    """Of cells that are asked again, those that this run has nothing to say of: a stack that was not there, and is none of the run's."""
    told = {(one.id, one.question, one.dtype, one.stacks, one.device) for one in results}
    reason = "this run can't ask this cell again: its check or one of its stacks was not there; ask all of it: parity run"
    return [
        Result(
            id=check_id, tier=check_id.partition(".")[0].upper(), title="a cell of the run that is asked again", stacks=stacks,
            question=question, device=devices, dtype=dtype, status=Status.NOT_COVERED, reason=reason,
        )
        for check_id, question, dtype, stacks, devices in sorted(set(cells) - told)
    ]  # fmt: skip


def _without(stack: str) -> str:
    remedy = "install twostack again, or name the stacks to ask: --stacks"
    return f"coverage.json lists this cell, and there is no stack {stack} here; {remedy}"


def _wanted(key: CellKey, tier: str, options: Options) -> bool:
    """Whether a run of these options asks a cell of the project's own."""
    if options.rerun is not None:
        return key in options.rerun.cells
    if options.checks:
        return key[0] in options.checks and (not options.tiers or tier in options.tiers)
    return tier in options.tiers or not (options.tiers or options.contract)


def _why_lost(reason: str, options: Options) -> str:
    if not reason:
        return "coverage.json lists this cell and no check asks it; restore the check, or record the loss: parity coverage --write"
    if options.model != graph.MODEL:
        return f"{reason}; leave that stack out (--stacks), or take another --model"
    return f"{reason}; coverage.json lists this cell: restore it, or record the loss: parity coverage --write"
