"""Runs checks: draws inputs, asks the stacks, judges the answers, shrinks what fails.

While the stacks compute one example, the previous one is judged, so that a run waits for the stacks and not for
itself. Exploring never stops at a failure, so that every independent one is found; each failing cell is then shrunk alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import hypothesis
import numpy as np
from hypothesis import Phase

from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.capabilities import Capabilities
from contract.worker.process import StackProcess
from parity import ahead
from parity import sources as answering
from parity.busy import Meter
from parity.cells import Cell
from parity.checks.check import Answered, Arrays, Ask, Awaited, Case, Check
from parity.drawing import draw, explore
from parity.find import locating, reproducer
from parity.find.locating import Located
from parity.find.preserve import Keeper
from parity.judge import confidence
from parity.profiles import Profile
from parity.report.record import Result
from parity.sources import SHRINKING, Example, NotRecorded, Source
from parity.tally import Tally

SHRINK_SECONDS = 20.0
SHRINK_EXAMPLES = 200
GIVE_UP_AFTER = 3
"""A stack that died, hung or broke the protocol that often is not asked again in this run."""

Key = tuple[object, ...]


class Divergence(AssertionError):
    """Raised while shrinking, to tell hypothesis that an input still fails."""


@dataclass
class _Asked:
    """One example on its way: which cells it serves, and the requests that each stack was sent.

    missing: why a source has no answer
    """

    example: Example
    drawn: bool
    cells: list[Cell]
    pending: dict[tuple[str, Key], tuple[Ask, Awaited]]
    stack_errors: dict[str, str]
    request_errors: dict[tuple[str, Key], str]
    missing: dict[tuple[str, Key], str]

    @property
    def case(self) -> Case:
        """Its input."""
        return self.example.case


class Engine:
    """Asks a set of running stacks.

    Args:
        processes: the stacks by name; a failure of one that is not here is neither shrunk nor bisected.
        capabilities: what each declares.
        sources: what answers in the stacks' place, by name; unless given, they do.
        profile: how many examples are drawn.
        rerun: the flags of `parity run` that draw the same inputs again, for snippets.
        statistical: how many statistical comparisons the whole run plans; the confidence is divided over them.
        on_example: called after each example, for a progress bar.
        doing: called with what is done now, where that takes long.
        reproducers: writes a file of each failing cell; None: there are none.
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
        sources: Mapping[str, Source] | None = None,
        reproducers: Keeper | None = None,
        deadline: float | None = None,
        on_example: Callable[[], None] = lambda: None,
        doing: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._processes, self._capabilities = processes, capabilities
        self._live = answering.live(processes)
        self._sources = self._live if sources is None else sources
        self._profile, self._seed, self._rerun, self._mutants = profile, seed, rerun, tuple(mutants)
        self._false_alarm = confidence.per_comparison(max(1, statistical))
        self._reproducers, self._deadline, self._on_example, self._doing = reproducers, deadline, on_example, doing
        self._harness_errors: dict[str, int] = dict.fromkeys(self._sources, 0)
        known = {name: process.busy for name, process in processes.items() if isinstance(process, StackProcess)}
        self.meter = Meter(busy={name: known.get(name, []) for name in self._sources})

    def run(self, check: Check, cells: Sequence[Cell]) -> list[Result]:
        """Explores one check for the cells that ask it; one result a cell."""
        if not self._profile.asks(check):
            return [Tally(cell).left() for cell in cells]
        tallies = {cell.key: Tally(cell) for cell in cells}
        with self.meter.check(check.id):
            missing = self._asked(check, tallies)
        share = self.meter.checks[check.id].wall / max(1, len(cells))
        return [self._result(tally, missing, share) for tally in tallies.values()]

    def _asked(self, check: Check, tallies: dict[str, Tally]) -> str:
        """Explores, and pins down what fails; returns why not all were covered, if so."""
        missing = self._explore(check, tallies)
        located: Located = {}
        for tally in tallies.values():
            if tally.failure is not None and self._runs(tally.cell):
                self._pin_down(check, tally, located)
                if self._reproducers is not None:
                    self._doing(f"{check.id}: writing the failure into a file")
                    self._reproducers.keep(tally, self._processes, self._capabilities, self._false_alarm)
        return missing

    def _explore(self, check: Check, tallies: dict[str, Tally]) -> str:
        """All fixed cases, then the drawn ones; returns why not all were covered, if so."""
        waiting: list[_Asked] = []

        def show(number: int, case: Case, drawn: bool) -> None:
            if self._out_of_time():
                return
            cells = [tally.cell for tally in tallies.values() if not tally.error]
            tell(case, "asking the stacks")
            made_ahead = ahead.begin(case, cells, self._capabilities, self.meter)
            waiting.append(self._ask(Example(check_id=check.id, number=number, case=case), check, cells, self._sources, drawn=drawn))
            if made_ahead is not None:
                made_ahead()  # and judged at once: references of two large cases are too much memory
            if len(waiting) > 1 or made_ahead is not None:
                judge()
            self._on_example()

        def judge() -> None:
            asked = waiting.pop(0)
            tell(asked.case, "perturbing the reference")
            self._judge(asked, tallies)
            for source in self._sources.values():
                source.done(asked.example)

        def tell(case: Case, what: str) -> None:
            if check.locate is not None:  # a graph takes seconds to a minute
                self._doing(f"{check.id}: {case.name}: {what}")

        missing = explore(check, self._profile, self._seed, show)
        while waiting:
            judge()
        return "the time budget was spent before all examples were asked" if self._out_of_time() else missing

    def _pin_down(self, check: Check, tally: Tally, located: Located) -> None:
        """Names the operations at fault where the check can, else finds the smallest input that fails."""
        if check.locate is None:
            self._shrink(check, tally)
        else:
            locating.locate(check, tally, self._processes, self._capabilities, located, self._doing)

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
        example = Example(check_id=tally.cell.check.id, number=SHRINKING, case=case)
        self._judge(self._ask(example, tally.cell.check, [tally.cell], self._live, drawn=True), {tally.cell.key: alone})
        if alone.failure is None:
            tally.passed += alone.passed
            return False
        if tally.failure is None or _size(case) <= _size(tally.failure[1]):
            tally.failure = alone.failure
        return True

    def _ask(self, example: Example, check: Check, cells: list[Cell], sources: Mapping[str, Source], *, drawn: bool) -> _Asked:
        asked = _Asked(example, drawn, cells, {}, {}, {}, {})
        numbers = answering.ordinals(check, example.case)
        for cell in cells:
            assert cell.plan is not None
            for request in cell.plan.requests(example.case):
                for stack in cell.stacks:
                    if (stack, request.key()) not in asked.pending and stack not in asked.stack_errors:
                        self._submit(asked, stack, sources[stack], numbers[request.key()], request)
        return asked

    def _submit(self, asked: _Asked, stack: str, source: Source, ordinal: int, request: Ask) -> None:
        if self._harness_errors[stack] >= GIVE_UP_AFTER:
            asked.stack_errors[stack] = f"{stack}: given up on after {GIVE_UP_AFTER} failures of its worker"
            return
        try:
            asked.pending[stack, request.key()] = (request, source.ask(asked.example, ordinal, request))
        except (HarnessError, RequestFailed) as error:
            self._note(stack, request.key(), error, asked)
        except NotRecorded as error:
            asked.missing[stack, request.key()] = str(error)

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
            self.meter.busy[stack].append(answer.busy_ns)
            answers[stack, key] = answer.tensors
        with self.meter.judging():
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
        missing = [asked.missing[stack, key] for stack in cell.stacks for key in keys if (stack, key) in asked.missing]
        if missing:
            tally.missing = tally.missing or f"{missing[0]} (on {case.name})"
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

    def _runs(self, cell: Cell) -> bool:
        """Whether the cell's stacks are here, and not answers of theirs alone."""
        return set(cell.stacks) <= set(self._processes)

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _result(self, tally: Tally, missing: str, seconds: float) -> Result:
        snippet = ""
        if tally.failure is not None and self._runs(tally.cell):
            comparison, case = tally.failure
            assert tally.cell.plan is not None
            requests = tally.cell.plan.requests(case)
            snippet = reproducer.snippet(tally.cell, case, comparison, requests, rerun=self._rerun, mutants=self._mutants)
        again = reproducer.command(tally.cell, rerun=self._rerun, mutants=self._mutants)
        return tally.result(missing=missing, seconds=seconds, again=again, snippet=snippet)


def _size(case: Case) -> int:
    return sum(array.size for arrays in case.inputs.values() for array in arrays.values())
