"""Asks drawn mutants of the checks that run their statement, several at once, and goes on where it was broken off."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from contract.errors import Interrupted
from contract.worker import discover
from contract.worker.files import cache_folder
from parity.mutants import asking, keys
from parity.mutants.asking import Stopped
from parity.mutants.facts import Cell, Ended, Facts
from parity.mutants.generic import drawing, reach
from parity.mutants.generic.asked import Planted, Request
from parity.mutants.generic.place import Place
from parity.mutants.generic.reach import Reach
from parity.mutants.ledger import Ledger
from parity.mutants.verdicts import HUNG_WORKER
from parity.options import Progress
from parity.profiles import FIXED_SEED
from parity.report.record import Status

LEAST_SECONDS = 300.0
MOST_TIMES = 10
"""A mutant hangs after so many times what its checks take without it, and that long at least."""


class Verdict(StrEnum):
    """What became of a mutant.

    KILLED: a cell that passes without it failed. SURVIVED: every check that runs its statement is green. CRASHED: the stack raised, so
    that a check reached no verdict: a user sees that, and it does not count as killed. NOT_REACHED: no check runs its statement.
    """

    KILLED = "killed"
    SURVIVED = "survived"
    CRASHED = "crashed"
    HUNG = "hung"
    NOT_REACHED = "not_reached"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a campaign is run.

    checks: how the ids of those begin that are asked; none: all. seed: of the checks' draws; the mutants have one of their own.
    """

    profile: str = "quick"
    checks: tuple[str, ...] = ()
    seed: int = FIXED_SEED
    jobs: int = 1
    state: Path = field(default_factory=lambda: cache_folder() / "mutants" / "drawn.jsonl")
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutant.

    checks: those that run its statement, the cheapest first. by: the check that settled it, of one that did not survive.
    """

    place: Place
    verdict: Verdict
    checks: tuple[str, ...] = ()
    by: str = ""
    tap: str = ""
    reason: str = ""
    seconds: float = 0.0


def judge(place: Place, checks: tuple[str, ...], facts: Facts) -> Outcome:
    """The verdict on what was asked, until something was not green."""
    failed = next((cell for cell in facts.cells if cell.status is Status.FAIL), None)
    broken = next((cell for cell in facts.cells if cell.status is Status.ERROR), None)
    verdict, cell, reason = Verdict.SURVIVED, failed or broken, facts.message
    if failed is not None:
        verdict, reason = Verdict.KILLED, failed.reason
    elif broken is not None:
        verdict, reason = (Verdict.HUNG if HUNG_WORKER in broken.reason else Verdict.CRASHED), broken.reason
    elif facts.ended is not Ended.DONE:
        verdict = Verdict.HUNG if facts.ended is Ended.HUNG else Verdict.CRASHED
    return Outcome(
        place=place, verdict=verdict, checks=checks, by="" if cell is None else cell.check, tap="" if cell is None else cell.tap,
        reason=reason, seconds=facts.seconds,
    )  # fmt: skip


def ask(places: Sequence[Place], settings: Settings, progress: Progress) -> tuple[Reach, list[Outcome]]:
    """Every mutant's outcome, in the order in which they were given.

    Raises:
        Interrupted: Ctrl-C; the state is whole.
    """
    known = discover.installed()
    depends = [keys.sources(["contract", "parity"]), keys.of_stacks(known, ()), platform.machine(), settings.profile, settings.seed]
    of = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    stop = threading.Event()
    try:
        with Ledger(settings.state, fresh=settings.fresh) as ledger:
            checks = reach.checks_of(settings.profile, settings.checks)
            progress.total(len(checks) + len(places))
            found = reach.find(
                checks,
                drawing.sources(),
                of,
                profile=settings.profile,
                seed=settings.seed,
                jobs=settings.jobs,
                stop=stop,
                progress=progress,
            )
            return found, list(_asked(places, found, _Asking(settings, ledger, of, stop, progress)))
    except (KeyboardInterrupt, Stopped):
        raise Interrupted(f"interrupted; what was asked is kept in {settings.state}, and the same command goes on from there") from None


@dataclass(frozen=True)
class _Asking:
    settings: Settings
    ledger: Ledger
    of: str
    stop: threading.Event
    progress: Progress

    def facts(self, place: Place, checks: tuple[str, ...], deadline: float) -> Facts:
        """Known ones, or those of a process."""
        key = hashlib.sha256(f"{place.digest} {sorted(checks)} {self.of}".encode()).hexdigest()
        known = self.ledger.get(key)
        if known is not None:
            return known
        if self.stop.is_set():
            raise Stopped
        self.progress.doing(place.name)
        facts = self._asked(place, checks, deadline)
        self.ledger.add(key, {"mutant": place.name}, facts)
        return facts

    def _asked(self, place: Place, checks: tuple[str, ...], deadline: float) -> Facts:
        with tempfile.TemporaryDirectory(prefix="twostack-mutant-") as name:
            folder = Path(name)
            planted = Planted(stack=place.stack, module=place.module, find=place.find, replace=place.replace)
            request = Request(
                planted=planted, checks=checks, profile=self.settings.profile, seed=self.settings.seed, said=folder / "said"
            )  # fmt: skip
            file = folder / "request.json"
            file.write_text(request.model_dump_json(), encoding="utf-8")
            child = asking.run("parity.mutants.generic.asked", file, folder, deadline=deadline, stop=self.stop)
            said = list(reach.read_said(request.said))
        cells: tuple[Cell, ...] = tuple(cell for one in said for cell in one.cells)
        crash = next((one.crash for one in said if one.crash), "")
        if not child.in_time:
            return Facts(ended=Ended.HUNG, message=f"took over its deadline of {deadline:.0f} s", cells=cells, seconds=child.seconds)
        if crash or child.code != 0:
            message = crash or f"its process ended with exit code {child.code}: {child.last_line}"
            return Facts(ended=Ended.CRASHED, message=message, cells=cells, seconds=child.seconds)
        return Facts(ended=Ended.DONE, cells=cells, seconds=child.seconds)


def _asked(places: Sequence[Place], found: Reach, asking_: _Asking) -> Iterator[Outcome]:
    def outcome(place: Place) -> Outcome:
        checks = found.of(place)
        if not checks:
            return Outcome(place=place, verdict=Verdict.NOT_REACHED, reason="no check that is green runs its statement")
        return judge(place, checks, asking_.facts(place, checks, LEAST_SECONDS + MOST_TIMES * found.seconds(checks)))

    with ThreadPoolExecutor(asking_.settings.jobs) as pool:
        futures = {pool.submit(outcome, place): place for place in places}
        try:
            for future in as_completed(futures):
                future.result()
                asking_.progress.step()
        finally:
            asking_.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    yield from (future.result() for future in futures)
