"""A whole measurement: the stacks as they are answer every unit once, then each mutant's; several processes at once, resumable.

Everything is kept in a folder named after the sources, so that the same command goes on where it was broken off, and a changed source is
measured anew.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from contract.errors import UserError
from contract.worker import discover
from parity.mutants import asking, keys
from parity.mutants.baselines import asked, measuring, rules, units
from parity.mutants.baselines.asked import Step
from parity.mutants.baselines.record import Alarm, Evidence, Seen
from parity.mutants.baselines.taking import PROFILE
from parity.mutants.baselines.units import Unit
from parity.mutants.catalogue import CONTRACT, Mutant
from parity.profiles import FIXED_SEED

_OWN = ("rules", "units", "ordinary", "curves", "taking", "seeing")
"""The modules of this package that say what is asked, and what a rule makes of it."""

DEADLINE_SECONDS = 3600.0
"""Of one step: a worker that hangs is ended by its launcher long before."""


@dataclass(frozen=True, kw_only=True)
class Tell:
    """What a measurement tells: how many steps there are, and each that is done."""

    total: Callable[[int], None] = lambda steps: None
    step: Callable[[str], None] = lambda name: None


@dataclass
class Steps:
    """Steps that run at once, and how they are stopped."""

    jobs: int
    tell: Tell
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, steps: Mapping[str, Step]) -> dict[str, str]:
        """Runs each in a process of its own; why nothing came of those that failed."""
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            try:
                waiting = {pool.submit(self._one, step): name for name, step in steps.items()}
                for future in as_completed(waiting):
                    if why := future.result():
                        failed[waiting[future]] = why
                    self.tell.step(waiting[future])
            except BaseException:
                self._stop.set()
                raise
        return failed

    def _one(self, step: Step) -> str:
        with tempfile.TemporaryDirectory(prefix="twostack-baselines-") as folder:
            file = Path(folder) / "step.json"
            file.write_text(step.model_dump_json(), encoding="utf-8")
            child = asking.run(asked.__name__, file, Path(folder), deadline=DEADLINE_SECONDS, stop=self._stop)
        if not child.in_time:
            return f"took over its deadline of {DEADLINE_SECONDS:.0f} s, and was killed"
        return "" if child.code == 0 else child.last_line


def measure(mutants: Sequence[Mutant], work: Path, *, jobs: int, tell: Tell) -> Evidence:
    """Measures what the rules see of some mutants, and their false alarms on the checks of these.

    Args:
        work: the folder that keeps what is done.

    Raises:
        UserError: a stack that has no bug does not answer.
    """
    sources = digest()
    home, pair = work / sources[:16], lanes()
    (home / "seen").mkdir(parents=True, exist_ok=True)
    clean, files = of_clean(home, pair, mutants), {mutant.name: home / "seen" / f"{file_name(mutant)}.json" for mutant in mutants}
    planted = {
        mutant.name: of_planted(home, pair, mutant, files[mutant.name]) for mutant in mutants if not files[mutant.name].exists()
    }  # fmt: skip
    tell.total(len(clean) + len(planted))
    steps = Steps(jobs, tell)
    if failed := steps.run(clean):
        name, why = next(iter(failed.items()))
        raise UserError(f"{name} could not be asked without any bug: {why}; mend that, and the same command goes on")
    failed = steps.run(planted)
    info = discover.installed()
    return Evidence(
        sources=sources, versions={name: version for stack in pair for name, version in info[stack].told_versions().items()},
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()}, profile=PROFILE,
        seed=FIXED_SEED, mutants=tuple(_seen(mutant, files[mutant.name], failed.get(mutant.name, "")) for mutant in mutants),
        alarms=tuple(alarms(home, pair, mutants)),
    )  # fmt: skip


def lanes() -> tuple[str, str]:
    """The two stacks that are compared: those that are no witness."""
    first, second = sorted(name for name, info in discover.installed().items() if info.capabilities.lane != "witness")
    return first, second


def of_clean(home: Path, pair: Sequence[str], mutants: Iterable[Mutant]) -> dict[str, Step]:
    """What is still to be asked of the stacks as they are: each unit of one check only, though several have it."""
    steps: dict[str, Step] = {}
    for stack in pair:
        known: set[str] = set()
        for check in dict.fromkeys(mutant.check for mutant in mutants):
            own = [unit.check.id for unit in units.units(check) if unit.check.id not in known]
            known.update(own)
            if only := tuple(unit for unit in own if not asked.whole(home, stack, unit).exists()):
                steps[f"{check} of {stack}"] = Step(home=home, stacks=(stack,), check=check, only=only)
    return steps


def of_planted(home: Path, pair: tuple[str, str], mutant: Mutant, seen: Path) -> Step:
    changed = tuple(stack for stack in pair if mutant.changes(stack))
    ordered = pair if not changed or changed[0] == pair[0] else (pair[1], pair[0])
    return Step(home=home, stacks=changed, check=mutant.check, mutant=mutant.name, pair=ordered, seen=seen)


def _seen(mutant: Mutant, file: Path, failed: str) -> Seen:
    if file.exists():
        return Seen.model_validate_json(file.read_bytes())
    return Seen(
        name=mutant.name,
        what=mutant.what,
        bug=mutant.bug or "",
        check=mutant.check,
        stacks=mutant.stacks,
        hard={},
        ordinary={},
        failed=failed,
    )


def alarms(home: Path, pair: tuple[str, str], mutants: Iterable[Mutant]) -> Iterable[Alarm]:
    """What each rule says of the two stacks as they are, unit by unit."""
    every: dict[str, Unit] = {}
    for check in dict.fromkeys(mutant.check for mutant in mutants):
        for unit in units.units(check):  # a run is asked for its losses by most checks, and for its tensors by some
            known = every.get(unit.check.id, unit)
            every[unit.check.id] = replace(unit, what=tuple(dict.fromkeys((*known.what, *unit.what))))
    for name, unit in sorted(every.items()):
        found = measuring.found(unit, pair, {stack: home / "clean" / stack for stack in pair})
        for rule in rules.EVERY:
            one = found[rule.name]
            if one.compared:
                yield Alarm(unit=name, inputs=unit.inputs, rule=rule.name, compared=len(one.compared), failing=len(one.failed))


def file_name(mutant: Mutant) -> str:
    """Named after the mutant and all that it changes."""
    content = hashlib.sha256(f"{mutant.check} {keys.of_patches(mutant)}".encode()).hexdigest()
    return f"{mutant.name}-{content[:12]}"


def digest() -> str:
    """SHA-256 of the sources that answers and their judging rest on."""
    own = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _OWN)
    return hashlib.sha256(keys.sources([CONTRACT, "parity", "stacks"]).encode() + own).hexdigest()
