"""Runs checks: draws inputs, asks the stacks, judges the answers, shrinks what fails.

While the stacks compute one example, the previous one is judged, so that a run waits for the stacks and not for
itself. Exploring never stops at a failure, so that every independent one is found; each failing cell is then shrunk alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import set_hypothesis_home_dir

from contract.errors import UserError
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.capabilities import Capabilities
from contract.worker.files import cache_folder
from contract.worker.process import StackProcess
from parity.cells import Cell
from parity.checks.check import Answered, Arrays, Ask, Awaited, Case, Check
from parity.find import reproducer
from parity.find.fault import Fault
from parity.judge import confidence
from parity.profiles import Profile
from parity.report.record import Result
from parity.tally import Tally

set_hypothesis_home_dir(cache_folder() / "hypothesis")  # not into the folder that the user happens to be in

SHRINK_SECONDS = 20.0
SHRINK_EXAMPLES = 200
GIVE_UP_AFTER = 3
"""A stack that died, hung or broke the protocol that often is not asked again in this run."""

Key = tuple[object, ...]


class Divergence(AssertionError):
    """Raised while shrinking, to tell hypothesis that an input still fails."""


@dataclass
class _Asked:
    """One example on its way: which cells it serves, and the requests that each stack was sent."""

    case: Case
    drawn: bool
    cells: list[Cell]
    pending: dict[tuple[str, Key], tuple[Ask, Awaited]]
    stack_errors: dict[str, str]
    request_errors: dict[tuple[str, Key], str]


class Engine:
    """Asks a set of running stacks.

    Args:
        processes: the stacks by name.
        capabilities: what each declares.
        profile: how many examples are drawn.
        rerun: the flags of `parity run` that draw the same inputs again, for snippets.
        statistical: how many statistical comparisons the whole run plans; the confidence is divided over them.
        on_example: called after each example, for a progress bar.
        doing: called with what is done now, where that takes long.
        deadline: monotonic time after which nothing new is asked; None for none.
    """

    def __init__(
        self,
        processes: Mapping[str, StackProcess],
        capabilities: Mapping[str, Capabilities],
        *,
        profile: Profile,
        seed: int,
        rerun: str,
        statistical: int,
        mutants: Sequence[str] = (),
        deadline: float | None = None,
        on_example: Callable[[], None] = lambda: None,
        doing: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._processes, self._capabilities = processes, capabilities
        self._profile, self._seed, self._rerun, self._mutants = profile, seed, rerun, tuple(mutants)
        self._false_alarm = confidence.per_comparison(max(1, statistical))
        self._deadline, self._on_example, self._doing = deadline, on_example, doing
        self._harness_errors: dict[str, int] = dict.fromkeys(processes, 0)
        self.busy: dict[str, list[tuple[int, int]]] = {name: [] for name in processes}

    def run(self, check: Check, cells: Sequence[Cell]) -> list[Result]:
        """Explores one check for the cells that ask it; one result a cell."""
        started = time.monotonic()
        tallies = {cell.key: Tally(cell) for cell in cells}
        missing = self._explore(check, tallies)
        located: dict[Key, Sequence[Fault]] = {}
        for tally in tallies.values():
            if tally.failure is not None:
                self._pin_down(check, tally, located)
        share = (time.monotonic() - started) / max(1, len(cells))
        return [self._result(tally, missing, share) for tally in tallies.values()]

    def _explore(self, check: Check, tallies: dict[str, Tally]) -> str:
        """All fixed cases, then the drawn ones; returns why not all were covered, if so."""
        waiting: list[_Asked] = []

        def example(case: Case, *, drawn: bool = True) -> None:
            if self._out_of_time():
                return
            cells = [tally.cell for tally in tallies.values() if not tally.error]
            tell(case, "asking the stacks")
            waiting.append(self._ask(case, cells, drawn=drawn))
            if len(waiting) > 1:
                judge()
            self._on_example()

        def judge() -> None:
            asked = waiting.pop(0)
            tell(asked.case, "perturbing the reference")
            self._judge(asked, tallies)

        def tell(case: Case, what: str) -> None:
            if check.locate is not None:  # a graph takes seconds to a minute
                self._doing(f"{check.id}: {case.name}: {what}")

        missing = ""
        try:
            for case in islice(check.fixed_cases(), self._profile.fixed(check)) if check.fixed_cases else ():
                example(case, drawn=False)
        except UserError as error:
            missing = str(error)
        draw(check, example, self._profile.drawn(check), self._seed, (Phase.generate,))
        while waiting:
            judge()
        return "the time budget was spent before all examples were asked" if self._out_of_time() else missing

    def _pin_down(self, check: Check, tally: Tally, located: dict[Key, Sequence[Fault]]) -> None:
        """Names the operations at fault where the check can, else finds the smallest input that fails.

        Args:
            located: what was found for other cells of this check; the same graph of the same case is not looked at twice.
        """
        if check.locate is None:
            self._shrink(check, tally)
            return
        assert tally.failure is not None
        case, plan = tally.failure[1], tally.cell.plan
        assert plan is not None
        for stack, device in zip(tally.cell.stacks, tally.cell.devices, strict=True):
            key = stack, *plan.requests(case)[0].key()
            try:
                if key not in located:
                    declared = self._capabilities[stack].elementary_on(device)
                    located[key] = check.locate(case, plan, self._processes[stack], declared, self._doing)
                tally.faults += located[key]
            except (HarnessError, RequestFailed, ValueError) as error:
                tally.error = f"bisect: {error}"

    def _shrink(self, check: Check, tally: Tally) -> None:
        """Replaces a tally's failure by the smallest one that hypothesis finds, and that by its failing part."""
        until = time.monotonic() + SHRINK_SECONDS

        def example(case: Case) -> None:
            if time.monotonic() < until and self._still_fails(case, tally):
                raise Divergence(tally.cell.key)

        with contextlib.suppress(Divergence, hypothesis.errors.Flaky):
            draw(check, example, SHRINK_EXAMPLES, self._seed, (Phase.generate, Phase.shrink))
        assert tally.failure is not None
        comparison, case = tally.failure
        if check.zoom is not None and comparison.where:
            self._still_fails(check.zoom(case, comparison.where), tally)

    def _still_fails(self, case: Case, tally: Tally) -> bool:
        """Asks one cell alone; a failure that is no larger takes the tally's place."""
        alone = Tally(tally.cell)
        self._judge(self._ask(case, [tally.cell], drawn=True), {tally.cell.key: alone})
        if alone.failure is None:
            return False
        if tally.failure is None or _size(case) <= _size(tally.failure[1]):
            tally.failure = alone.failure
        return True

    def _ask(self, case: Case, cells: list[Cell], *, drawn: bool) -> _Asked:
        asked = _Asked(case, drawn, cells, {}, {}, {})
        for cell in cells:
            assert cell.plan is not None
            for request in cell.plan.requests(case):
                for stack in cell.stacks:
                    if (stack, request.key()) not in asked.pending and stack not in asked.stack_errors:
                        self._submit(asked, stack, request)
        return asked

    def _submit(self, asked: _Asked, stack: str, request: Ask) -> None:
        if self._harness_errors[stack] >= GIVE_UP_AFTER:
            asked.stack_errors[stack] = f"{stack}: given up on after {GIVE_UP_AFTER} failures of its worker"
            return
        try:
            asked.pending[stack, request.key()] = (request, request.send(self._processes[stack]))
        except (HarnessError, RequestFailed) as error:
            self._note(stack, request.key(), error, asked)

    def _note(self, stack: str, key: Key, error: Exception, asked: _Asked) -> None:
        """A stack's own error is one request's; a worker's failure is all that this example asks of it."""
        if isinstance(error, RequestFailed):
            asked.request_errors[stack, key] = str(error)
        elif stack not in asked.stack_errors:
            asked.stack_errors[stack] = str(error)
            self._harness_errors[stack] += 1

    def _judge(self, asked: _Asked, tallies: Mapping[str, Tally]) -> None:
        answers: dict[tuple[str, Key], Arrays] = {}
        for (stack, key), (request, pending) in asked.pending.items():
            try:
                answer = pending.result()
                request.require(stack, answer.tensors)
            except (HarnessError, RequestFailed) as error:
                self._note(stack, key, error, asked)
                continue
            self.busy[stack].append(answer.busy_ns)
            answers[stack, key] = answer.tensors
        for cell in asked.cells:
            self._judge_cell(tallies[cell.key], asked, answers)
        asked.case.forget()

    def _judge_cell(self, tally: Tally, asked: _Asked, answers: Mapping[tuple[str, Key], Arrays]) -> None:
        cell, case = tally.cell, asked.case
        assert cell.plan is not None
        keys = [request.key() for request in cell.plan.requests(case)]
        broken = [asked.stack_errors[stack] for stack in cell.stacks if stack in asked.stack_errors]
        broken += [asked.request_errors[stack, key] for stack in cell.stacks for key in keys if (stack, key) in asked.request_errors]
        if broken:
            tally.error = tally.error or f"{broken[0]} (on {case.name})"
            return
        answered = [
            Answered(stack=stack, device=device, capabilities=self._capabilities[stack], answers=[answers[stack, key] for key in keys])
            for stack, device in zip(cell.stacks, cell.devices, strict=True)
        ]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            try:
                comparisons = cell.plan.judge(case, answered, self._false_alarm)
            except ValueError as error:
                tally.error = tally.error or f"{error} (on {case.name})"
                return
        tally.example(comparisons, case, drawn=asked.drawn)

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _result(self, tally: Tally, missing: str, seconds: float) -> Result:
        snippet = ""
        if tally.failure is not None:
            comparison, case = tally.failure
            assert tally.cell.plan is not None
            requests = tally.cell.plan.requests(case)
            snippet = reproducer.snippet(tally.cell, case, comparison, requests, rerun=self._rerun, mutants=self._mutants)
        again = reproducer.command(tally.cell, rerun=self._rerun, mutants=self._mutants)
        return tally.result(missing=missing, seconds=seconds, again=again, snippet=snippet)


def draw(check: Check, example: Callable[[Case], None], examples: int, seed: int, phases: tuple[Phase, ...]) -> None:
    """Shows `example` so many of a check's drawn cases; the same ones for the same seed."""
    if check.cases is None or examples == 0:
        return

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples, phases=phases, database=None, deadline=None, derandomize=False, suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False, verbosity=hypothesis.Verbosity.quiet,
    )  # fmt: skip
    @hypothesis.given(check.cases)
    def body(case: Case) -> None:
        example(case)

    body()


def _size(case: Case) -> int:
    return sum(array.size for arrays in case.inputs.values() for array in arrays.values())


def busy_seconds(busy: Mapping[str, Sequence[tuple[int, int]]]) -> float:
    """Seconds during which at least one stack was busy: the union of the intervals (monotonic clock, nanoseconds)."""
    total, end = 0, 0
    for start, stop in _sorted(busy):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e9


def _sorted(busy: Mapping[str, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    return iter(sorted(interval for intervals in busy.values() for interval in intervals))
