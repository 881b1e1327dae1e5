"""The results of cells that a run does not ask: not applicable, or lost from coverage.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parity import cells as matrix
from parity.cells import Cell, Device
from parity.checks import graph
from parity.options import Options
from parity.report.record import Result, Status


def explained(cell: Cell) -> Result:
    """A cell that does not apply, with the reason."""
    return _without_answer(cell.check.id, cell.check.tier, cell.check.title, cell, Status.NOT_APPLICABLE, cell.reason)


def _without_answer(check_id: str, tier: str, title: str, cell: Cell, status: Status, reason: str) -> Result:
    return Result(
        id=check_id, tier=tier, title=title, stacks=cell.stacks, question=cell.question, device=cell.devices, dtype=cell.dtype,
        status=status, reason=reason,
    )  # fmt: skip


def lost(recorded: Mapping[str, str], cells: Sequence[Cell], devices: Sequence[Device], options: Options) -> list[Result]:
    """Cells of coverage.json that were asked for and that this run does not ask: no check does, or a stack declares too little."""
    results, reasons = [], matrix.coverage(cells)
    for key in matrix.lost(recorded, cells, devices):
        check_id, question, dtype, who = key.split(" | ")
        tier = check_id.partition(".")[0].upper()
        if (options.tiers and tier not in options.tiers) or (options.checks and check_id not in options.checks):
            continue
        pairs = [one.split(" on ") for one in who.split(" + ")]
        results.append(
            Result(
                id=check_id, tier=tier, title="a cell of coverage.json", stacks=tuple(stack for stack, _ in pairs), question=question,
                device=tuple(device for _, device in pairs), dtype=dtype, status=Status.NOT_COVERED,
                reason=_why_lost(reasons.get(key, ""), options),
            )
        )  # fmt: skip
    return results


def _why_lost(reason: str, options: Options) -> str:
    if not reason:
        return "coverage.json lists this cell and no check asks it; restore the check, or record the loss: parity coverage --write"
    if options.model != graph.MODEL:
        return f"{reason}; leave that stack out (--stacks), or take another --model"
    return f"{reason}; coverage.json lists this cell: restore it, or record the loss: parity coverage --write"
