"""Which statements of the stacks each check runs, what it costs, and whether it is green: found once, by running each check alone.

A mutant is then asked of those checks only that run its statement. What runs when a module is imported (a constant, a default) is said to
be reached by the checks that run a statement which names it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import UserError
from contract.worker.files import cache_folder, replacing
from parity.checks import registry
from parity.mutants import asking
from parity.mutants.generic import statements
from parity.mutants.generic.asked import Request, Said
from parity.mutants.generic.place import Place
from parity.mutants.verdicts import QUIET
from parity.options import Progress
from parity.profiles import PROFILES
from parity.report.record import Status

SECONDS = 3600.0
"""The deadline of a check without a mutant."""

Lines = Mapping[str, frozenset[int]]
"""Module -> first lines of statements."""


class CheckReach(BaseModel):
    """A check on the stacks as they are.

    red: why it is not green, so that nothing that it says of a mutant counts. ran: module -> first lines of statements.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    seconds: float
    red: str
    ran: dict[str, frozenset[int]]


@dataclass(frozen=True)
class Reach:
    """Every check's, and the modules that they ran."""

    checks: Sequence[CheckReach]
    sources: Mapping[str, str]

    @property
    def red(self) -> dict[str, str]:
        """Checks that are not asked, since they are not green without a mutant: why."""
        return {one.check: one.red for one in self.checks if one.red}

    def of(self, place: Place) -> tuple[str, ...]:
        """The green checks that run a mutant's statement, the cheapest first."""
        lines = self.lines(place)
        hit = [one for one in self.checks if not one.red and any(one.ran.get(module, frozenset()) & at for module, at in lines.items())]
        return tuple(one.check for one in sorted(hit, key=lambda one: (one.seconds, one.check)))

    def seconds(self, checks: Sequence[str]) -> float:
        """What some checks took."""
        return sum(one.seconds for one in self.checks if one.check in checks)

    def lines(self, place: Place) -> Lines:
        """The statements by which a mutant can be seen."""
        tree = ast.parse(self.sources[place.module])
        own = statements.innermost(tree, place.line)
        if own is not None:
            return {place.module: frozenset({own.lineno})}
        for function in statements.functions(tree):
            if function.lineno <= place.line < function.body[0].lineno:
                return {place.module: frozenset(statements.own_lines(function))}
        naming = self._naming(place.module, statements.bound_names(tree, place.line))
        return naming or {place.module: frozenset(line for one in self.checks for line in one.ran.get(place.module, ()))}

    def _naming(self, module: str, names: Sequence[str]) -> dict[str, frozenset[int]]:
        """The statements inside of functions that name something, or what is made of it when modules are imported."""
        stack = module.split(".")[1]
        trees = {name: ast.parse(source) for name, source in self.sources.items() if name.split(".")[1] == stack}
        wanted, found, grew = set(names), dict[str, set[int]](), True
        while grew:
            before = len(wanted)
            for name, tree in trees.items():
                for mentioned, line in statements.named(tree):
                    if mentioned in wanted:
                        if statements.innermost(tree, line) is None:
                            wanted |= set(statements.bound_names(tree, line))
                        else:
                            found.setdefault(name, set()).add(line)
            grew = len(wanted) > before
        return {name: frozenset(lines) for name, lines in found.items()}


def checks_of(profile: str, begin: Sequence[str] = ()) -> list[str]:
    """The checks that a profile asks; of those whose id begins so, or all.

    Raises:
        UserError: no check's id begins so.
    """
    asked = [check.id for check in registry.CHECKS if PROFILES[profile].asks(check)]
    for start in begin:
        if not any(check.startswith(start) for check in asked):
            raise UserError(f"no check that the profile {profile} asks begins with {start!r}; all of them: parity explain")
    return [check for check in asked if not begin or check.startswith(tuple(begin))]


def find(
    checks: Sequence[str], sources: Mapping[str, str], of: str, *,
    profile: str, seed: int, jobs: int, stop: threading.Event, progress: Progress,
) -> Reach:  # fmt: skip
    """The reach of some checks; what was found before, of the same sources, is read from the user's cache.

    Args:
        of: a digest of all that it depends on besides the check.

    Raises:
        asking.Stopped: `stop` was set.
    """

    def one(check: str) -> CheckReach:
        if stop.is_set():
            raise asking.Stopped
        kept = cache_folder() / "mutants" / "reach" / f"{hashlib.sha256(f'{check} {of}'.encode()).hexdigest()[:32]}.json"
        try:
            found = CheckReach.model_validate_json(kept.read_bytes())
        except (OSError, ValidationError):
            progress.doing(f"{check}: which statements it runs")
            found = _found(check, profile, seed, stop)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as file:
                file.write(found.model_dump_json().encode())
        progress.step()
        return found

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return Reach(list(pool.map(one, reversed(checks))), sources)  # the later tiers take longest, and begin first
        except BaseException:
            stop.set()  # else leaving the block would wait for all of them
            raise


def _found(check: str, profile: str, seed: int, stop: threading.Event) -> CheckReach:
    with tempfile.TemporaryDirectory(prefix="twostack-reach-") as name:
        folder = Path(name)
        traced, file = folder / "traced", folder / "request.json"
        traced.mkdir()
        request = Request(planted=None, checks=(check,), profile=profile, seed=seed, traced=traced, said=folder / "said")
        file.write_text(request.model_dump_json(), encoding="utf-8")
        child = asking.run("parity.mutants.generic.asked", file, folder, deadline=SECONDS, stop=stop)
        said = list(read_said(request.said))
        red = "" if said else f"its process ended with exit code {child.code}: {child.last_line}"
        wrong = [cell for one in said for cell in one.cells if cell.status not in QUIET]
        if wrong:
            red = f"{wrong[0].status}: {wrong[0].reason}"
        elif not any(cell.status is Status.PASS for one in said for cell in one.cells):
            red = red or "it compares nothing here"
        return CheckReach(check=check, seconds=sum(one.seconds for one in said), red=red, ran=_ran(traced))


def read_said(file: Path) -> Iterator[Said]:
    """What a process had said when it ended; a last line that was cut short is none."""
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                json.loads(line)
            except ValueError:
                return
            yield Said.model_validate_json(line)


def _ran(folder: Path) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for file in folder.glob("*.ran"):
        for line in file.read_text(encoding="utf-8").splitlines():
            module, _, number = line.rpartition(":")
            found.setdefault(module, set()).add(int(number))
    return {module: frozenset(lines) for module, lines in found.items()}
