"""Waivers, applied to a run's results."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from contract.worker import discover
from parity.checks import registry
from parity.judge.waivers import Waiver
from parity.report.record import Result, Status


def apply(
    results: Sequence[Result], accepted: Sequence[Waiver], stacks: set[str], checks: set[str], today: datetime.date
) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """Applies the waivers; an expired one accepts nothing, and both an expired and an unused one are problems."""
    used: set[Waiver] = set()
    final = []
    for result in results:
        match = next((one for one in accepted if one.covers(result.id, result.stacks) and today <= one.expires), None)
        if match is not None and result.status is Status.FAIL:
            used.add(match)
            result = result.model_copy(
                update={"status": Status.WAIVED, "reason": f"{match.reason} (until {match.expires}); {result.reason}"}
            )
        final.append(result)
    known_checks, known_stacks = {check.id for check in registry.CHECKS}, set(discover.discover())
    strangers = [one for one in accepted if one.check not in known_checks or one.stack not in known_stacks]
    relevant = [one for one in accepted if one.check in checks and one.stack in stacks]
    problems = [
        f"the waiver of {one.check} for {one.stack} names a check or a stack that there is none of; correct it" for one in strangers
    ]
    problems += [f"the waiver of {one.check} for {one.stack} expired on {one.expires}" for one in relevant if today > one.expires]
    problems += [
        f"the waiver of {one.check} for {one.stack} is not used; remove it" for one in relevant if today <= one.expires and one not in used
    ]
    return tuple(final), tuple(problems)
