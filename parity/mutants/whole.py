"""A whole campaign, from what the user named to its record."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import resource
import time
from collections.abc import Sequence

from contract.errors import UserError
from contract.worker import discover
from parity.checks import registry
from parity.mutants import campaign, catalogue, keys, sample
from parity.mutants.campaign import Settings
from parity.mutants.catalogue import Mutant
from parity.options import Progress
from parity.report import mutants as report
from parity.report.mutants import Campaign


def choose(names: Sequence[str], tiers: Sequence[str], *, sampled: bool) -> list[Mutant]:
    """The mutants that are named, of these tiers, or of a sample of them; nothing named: all.

    Raises:
        UserError: an unknown mutant or tier, or there are none of those.
    """
    for tier in tiers:
        if tier not in registry.TIERS:
            raise UserError(f"there is no tier {tier!r}; allowed: {', '.join(registry.TIERS)}")
    every = [catalogue.read(name) for name in dict.fromkeys(names)] or list(catalogue.read_all().values())
    found = [one for one in every if not tiers or one.check[:1].upper() in tiers]
    if not found:
        raise UserError(f"none of the mutants that are named has a check of the tiers {', '.join(tiers)}; name others, or drop --tier")
    return sample.choose(found, catalogue.bugs()) if sampled else found


def run(chosen: Sequence[Mutant], settings: Settings, selection: str, progress: Progress) -> Campaign:
    """Asks the mutants, and says what came of it.

    Args:
        selection: the flags that chose them; empty: all of the catalogue, of which every bug is told then.

    Raises:
        UserError, Interrupted: as campaign.ask.
    """
    began, cpu, started = time.monotonic(), _cpu(), datetime.datetime.now(datetime.UTC)
    known = discover.discover()
    bugs = catalogue.bugs()
    asked = {outcome.mutant.name: report.result(outcome, bugs) for outcome in campaign.ask(chosen, settings, progress)}
    results = tuple(asked[mutant.name] for mutant in chosen)
    told = tuple(report.bug_result(bug, asked) for bug in bugs.values() if not selection or asked.keys() & set(bug.mutants))
    red = report.red_without(results)
    return Campaign(
        twostack=importlib.metadata.version("twostack"), started=started.isoformat(timespec="seconds"),
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
        profile=settings.profile, seed=settings.seed, until=settings.until, selection=selection or "all",
        sources=keys.sources(["contract", "parity", "stacks"]), stacks={name: info.told_versions() for name, info in known.items()},
        totals=report.totals(results, told), localised=report.localised(results), red_without=red, mutants=results, bugs=told,
        wall=round(time.monotonic() - began, 1), cpu=round(_cpu() - cpu, 1), exit_code=report.exit_code(results, told, red),
    )  # fmt: skip


def _cpu() -> float:
    """Processor seconds of this process, and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
