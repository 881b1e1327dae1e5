"""Which operations are at fault in a cell: of its first failing input, and of each other one that fails in a way of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.capabilities import Capabilities
from contract.worker.process import StackProcess
from parity.checks.check import Check, Tell
from parity.find.fault import Fault
from parity.tally import Tally

SECONDS = 120.0
"""After so long no further input of a cell is looked at; the first one is, however long it takes."""

Located = dict[tuple[object, ...], Sequence[Fault]]
"""A stack and the first request of an input -> the faults that were found there."""


def locate(
    check: Check,
    tally: Tally,
    processes: Mapping[str, StackProcess],
    capabilities: Mapping[str, Capabilities],
    located: Located,
    tell: Tell,
) -> None:
    """Writes the faults of every stack of the cell into the tally.

    Args:
        located: what was found for other cells of this check: the same graph of the same case is not looked at twice.
    """
    until = time.monotonic() + SECONDS
    found: list[Fault] = []
    try:
        for number, faults in enumerate(_each(check, tally, processes, capabilities, located, tell)):
            found += faults
            if number + 1 >= len(tally.cell.stacks) and time.monotonic() > until:
                break
    except (HarnessError, RequestFailed, ValueError) as error:
        tally.error = f"bisect: {error}"
    tally.faults = together(found)


def _each(
    check: Check,
    tally: Tally,
    processes: Mapping[str, StackProcess],
    capabilities: Mapping[str, Capabilities],
    located: Located,
    tell: Tell,
) -> Iterator[Sequence[Fault]]:
    """The faults of each stack in each input, input by input."""
    plan = tally.cell.plan
    assert plan is not None
    assert check.locate is not None
    for case in tally.failing:
        for stack, device in zip(tally.cell.stacks, tally.cell.devices, strict=True):
            key = stack, *plan.requests(case)[0].key()
            if key not in located:
                declared = capabilities[stack].elementary_on(device)
                located[key] = check.locate(case, plan, processes[stack], declared, tell)
            yield located[key]


def together(faults: Sequence[Fault]) -> list[Fault]:
    """One fault a stack and operation, with the sections and directions of them all and the numbers of the first."""
    merged: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        key = fault.stack, fault.operation
        if key not in merged:
            merged[key] = fault
            continue
        first = merged[key]
        sections = tuple(dict.fromkeys((*first.sections, *fault.sections)))
        direction = first.direction if first.direction == fault.direction else "both"
        merged[key] = first.model_copy(update={"sections": sections, "direction": direction})
    return list(merged.values())
