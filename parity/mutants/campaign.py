"""Asks mutants of the gate, several at once, and goes on where an earlier campaign was broken off."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from contract.errors import Interrupted, UserError
from contract.worker import discover
from contract.worker.files import cache_folder
from parity.checks import registry
from parity.mutants import asking, keys, verdicts
from parity.mutants.asked import Request
from parity.mutants.asking import Stopped
from parity.mutants.catalogue import CONTRACT
from parity.mutants.facts import Askable, Ended, Facts
from parity.mutants.ledger import Ledger
from parity.mutants.stages import Stage, clean, stages
from parity.mutants.verdicts import CheckVerdict, Verdict
from parity.options import Progress
from parity.profiles import FIXED_SEED

LEAST_SECONDS = 300.0
MOST_TIMES = 20
"""A deadline is so many times what the checks take without the mutant, and that long at least: bisecting and shrinking add to it."""

CLEAN_SECONDS = 3600.0
"""The deadline of a run without a mutant."""


def state_file() -> Path:
    """Where a campaign keeps what it knows, unless it is told."""
    return cache_folder() / "mutants" / "asked.jsonl"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How mutants are asked.

    seed:     the same in every campaign: a mutant that an unlucky draw lets live is to be seen again.
    jobs:     processes at once, each of which has a core's threads.
    until:    stages.UNTIL.
    fresh:    forget what is known.
    deadline: seconds of an asking, of those that the same checks took without the mutant.
    """

    profile: str = "quick"
    seed: int = FIXED_SEED
    jobs: int = 1
    until: str = "killed"
    state: Path = field(default_factory=state_file)
    fresh: bool = False
    deadline: Callable[[float], float] = lambda clean: LEAST_SECONDS + MOST_TIMES * clean


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutant. reason: of one that is stale, why."""

    mutant: Askable
    verdict: Verdict
    asked: tuple[CheckVerdict, ...] = ()
    reason: str = ""

    @property
    def killed_by(self) -> CheckVerdict | None:
        """The first check that killed it."""
        return next((one for one in self.asked if one.verdict is Verdict.KILLED), None)


def ask(mutants: Iterable[Askable], settings: Settings, progress: Progress | None = None) -> Iterator[Outcome]:
    """One outcome a mutant, as they become known.

    Raises:
        UserError: a mutant of a check or a stack that there is none of; another campaign has the state.
        Interrupted: Ctrl-C; the state is whole, and the message tells how to go on.
    """
    every = tuple(mutants)
    _require_known(every)
    with Ledger(settings.state, fresh=settings.fresh) as ledger:
        yield from _Campaign(every, settings, ledger, progress or Progress()).outcomes()


def _require_known(mutants: Sequence[Askable]) -> None:
    checks, stacks = {check.id for check in registry.CHECKS}, {*discover.discover(), CONTRACT}
    for mutant in mutants:
        if mutant.check not in checks:
            raise UserError(f"mutant {mutant.name} names the check {mutant.check!r}, which there is none of; all of them: parity explain")
        if unknown := set(mutant.stacks) - stacks:
            raise UserError(f"mutant {mutant.name} changes {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(stacks))}")


class _Campaign:
    """The threads that ask, each one process at a time."""

    def __init__(self, mutants: Sequence[Askable], settings: Settings, ledger: Ledger, progress: Progress) -> None:
        self._mutants, self._settings, self._ledger, self._progress = mutants, settings, ledger, progress
        self._stop = threading.Event()
        self._planning = threading.Lock()
        self._known = discover.discover()
        self._covers: dict[tuple[str, tuple[str, ...]], Stage] = {}
        self._locks: dict[Stage, threading.Lock] = {}
        self._clean: dict[Stage, Facts] = {}

    def outcomes(self) -> Iterator[Outcome]:
        """All of them."""
        stale = {mutant.name: why for mutant in self._mutants if (why := keys.stale(mutant))}
        asked = [mutant for mutant in self._mutants if mutant.name not in stale]
        first = self._covering([next(stages(mutant, self._settings.until)) for mutant in asked])
        self._progress.total(len(first) + len(self._mutants))
        with ThreadPoolExecutor(self._settings.jobs) as pool:
            try:
                for mutant in self._mutants:
                    if mutant.name in stale:
                        self._progress.step()
                        yield Outcome(mutant=mutant, verdict=Verdict.STALE, reason=stale[mutant.name])
                for run in first:
                    pool.submit(self._clean_facts, run).add_done_callback(lambda done: self._progress.step())
                for future in as_completed([pool.submit(self._outcome, mutant) for mutant in _dear_first(asked)]):
                    self._progress.step()
                    yield future.result()
            except KeyboardInterrupt:
                raise Interrupted(self._how_to_go_on()) from None
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _how_to_go_on(self) -> str:
        return f"interrupted; what was asked is kept in {self._settings.state}, and the same command goes on from there"

    def _outcome(self, mutant: Askable) -> Outcome:
        asked: list[CheckVerdict] = []
        for stage in stages(mutant, self._settings.until):
            without = self._without(stage)
            planted = self._facts(mutant, stage, self._settings.deadline(_seconds(stage, without)))
            asked += verdicts.judge(mutant, stage.checks, stage.stacks, planted, without)
            ended = {one.verdict for one in asked} & {Verdict.KILLED, Verdict.CRASHED, Verdict.HUNG}
            if ended and self._settings.until != "every":
                break
        return Outcome(mutant=mutant, verdict=verdicts.together(asked), asked=tuple(asked))

    def _without(self, stage: Stage) -> Facts:
        """The facts of a stage's checks without a mutant."""
        facts = [self._clean_facts(run) for run in self._covering([stage])]
        broken = next((one for one in facts if one.ended is not Ended.DONE), None)
        if broken is not None:
            return broken
        return Facts(ended=Ended.DONE, cells=tuple(cell for one in facts for cell in one.cells if cell.check in stage.checks))

    def _covering(self, wanted: Sequence[Stage]) -> list[Stage]:
        """The runs that cover the checks of some stages; a check that one covers already keeps it."""
        with self._planning:
            for run in clean(wanted):
                lacking = tuple(check for check in run.checks if (check, run.stacks) not in self._covers)
                self._covers |= {(check, run.stacks): Stage(checks=lacking, stacks=run.stacks) for check in lacking}
            return list(dict.fromkeys(self._covers[check, stage.stacks] for stage in wanted for check in stage.checks))

    def _clean_facts(self, run: Stage) -> Facts:
        """Of a run without a mutant: asked once, by who needs it first; the others wait for it."""
        with self._planning:
            lock = self._locks.setdefault(run, threading.Lock())
        with lock:
            if run not in self._clean:
                self._clean[run] = self._facts(None, run, CLEAN_SECONDS)
            return self._clean[run]

    def _facts(self, mutant: Askable | None, stage: Stage, deadline: float) -> Facts:
        """Known ones, or those of a process."""
        key, name = self._key(mutant, stage), "" if mutant is None else mutant.name
        known = self._ledger.get(key)
        if known is not None:
            return known
        if self._stop.is_set():
            raise Stopped
        self._progress.doing(f"{', '.join(stage.checks[:2])}{' ...' if len(stage.checks) > 2 else ''} {name or 'without a mutant'}")
        with tempfile.TemporaryDirectory(prefix="twostack-mutants-") as folder:
            request = Request(
                checks=stage.checks, stacks=stage.stacks, profile=self._settings.profile, seed=self._settings.seed,
                mutants=(name,) if name else (), record=Path(folder) / "run.json",
            )  # fmt: skip
            facts = asking.ask(request, Path(folder), deadline=deadline, stop=self._stop)
        self._ledger.add(
            key, {"mutant": name, "checks": stage.checks, "stacks": stage.stacks}, facts, lasting=key == self._key(mutant, stage)
        )
        return facts

    def _key(self, mutant: Askable | None, stage: Stage) -> str:
        """By the source as it is now, for somebody may be working on it."""
        of = keys.of_stacks(self._known, stage.stacks)
        return keys.key(mutant, stage.checks, stage.stacks, of, profile=self._settings.profile, seed=self._settings.seed)


def _dear_first(mutants: Sequence[Askable]) -> list[Askable]:
    """Tiers that take longest first, so that no process is left alone at the end."""
    return sorted(mutants, key=lambda mutant: mutant.check[:1], reverse=True)


def _seconds(stage: Stage, without: Facts) -> float:
    """What a stage's checks took without the mutant."""
    return sum(cell.seconds for cell in without.cells if cell.check in stage.checks) or without.seconds
