"""Waivers, applied to a run's results."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence

from contract.worker import discover
from parity.checks import own_run, registry
from parity.judge.waivers import Waiver
from parity.options import CellKey
from parity.report.record import Result, Status


def apply(
    results: Sequence[Result], accepted: Sequence[Waiver], stacks: set[str], checks: set[str], today: datetime.date, *,
    cells: Collection[CellKey] | None = None,
) -> tuple[tuple[Result, ...], tuple[str, ...]]:  # fmt: skip
    """Applies the waivers; an expired one accepts nothing, and both an expired and an unused one are problems.

    A failed cell that has an error too, or was not covered, shows that once its failure is waived.

    Args:
        stacks, checks: of the run; a waiver of others is no matter of it.
        cells: those that are asked alone, of which a waiver must be used.
    """
    used: set[Waiver] = set()
    final = []
    for result in results:
        match = next((one for one in accepted if one.covers(result.id, result.stacks) and today <= one.expires), None)
        if match is not None and result.status is Status.FAIL:
            used.add(match)
            waived = f"{match.reason} ({match.owner}, until {match.expires}); {result.reason}"
            result = result.model_copy(update={"status": result.beneath or Status.WAIVED, "reason": waived})
        final.append(result)
    known_checks, known_stacks = {*own_run.IDS, *(check.id for check in registry.CHECKS)}, set(discover.discover())
    strangers = [one for one in accepted if one.check not in known_checks or one.stack not in known_stacks]
    relevant = [one for one in accepted if one.check in checks and one.stack in stacks and _asked(one, cells)]
    problems = [
        f"the waiver of {one.check} for {one.stack} names a check or a stack that there is none of; correct it" for one in strangers
    ]
    problems += [
        f"the waiver of {one.check} for {one.stack} expired on {one.expires}; {one.owner} is to say what now"
        for one in relevant
        if today > one.expires
    ]
    problems += [
        f"the waiver of {one.check} for {one.stack} is not used; remove it" for one in relevant if today <= one.expires and one not in used
    ]
    return tuple(final), tuple(problems)


def _asked(waiver: Waiver, cells: Collection[CellKey] | None) -> bool:
    return cells is None or any(waiver.covers(check, stacks) for check, _, _, stacks, _ in cells)
