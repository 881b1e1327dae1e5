"""Steps of a run without a new state between them, as a user's run takes them: errors grow, and are held against their own growth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from contract.data.steps import Step
from contract.training.inputs import Run
from contract.training.stepwise import expected_state, state_tensors
from contract.training.trainer import TrainerState
from contract.worker.process import StackProcess
from parity.checks import trajectory_judges
from parity.checks.check import Answered, Arrays, Case
from parity.checks.several import Several
from parity.checks.trajectory_asking import opened
from parity.checks.trajectory_case import AT_ONCE, RUNS, initial_state, opened_run, require
from parity.checks.trajectory_reference import taken, weights_of
from parity.checks.trajectory_run import LLAMA
from parity.judge import perturb
from parity.judge.perturb import Response
from parity.judge.verdict import Comparison
from parity.reference import trajectory
from parity.reference.rounding import Noise

INJECTED = 2.0**-44
"""The u of the perturbed runs. An update's sensitivity is 1 / eps where m and v begin at zero, so that at 2^-30, where a single step is
linear, a run of many is not; and 2^-53 is the reference's own. A test holds it against 2^-41."""

LENGTHS = (6, 20)
"""Steps of the two cases: past the warm-up, with an epoch's end among them; and the whole run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FreeCase(Case):
    """A run's first steps, from the state that it begins with."""

    run: Run
    steps: Sequence[Step]
    start: TrainerState
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def compute(self, noise: Noise | None = None) -> dict[str, np.ndarray]:
        """What they give by the reference, with a leading axis of runs: each perturbed run goes its own way."""
        steps = [taken(self.run, step) for step in self.steps]
        return trajectory.take_all(self.run.plan, weights_of(self.run), self.start, steps, noise=noise)

    def exact(self) -> dict[str, np.ndarray]:
        """What they give by the reference."""
        return self.once("exact", lambda: {name: value[0] for name, value in self.compute().items()})

    def response(self, ulp: float) -> Response:
        """How far rounding errors grow."""
        made: dict[float, Response] = self.once("responses", dict)
        for larger, found in made.items():
            if larger >= ulp:
                return found
        _, made[ulp] = perturb.respond_to(self.compute, rows=AT_ONCE, runs=RUNS, seed=len(self.steps), ulp=ulp, injected=INJECTED)
        return made[ulp]


def cases() -> Iterator[FreeCase]:
    """The run of d.trajectory, so that a session that is open serves both."""
    folder, run = opened_run(LLAMA, "float64")
    start = initial_state(run)
    for length in LENGTHS:
        steps = tuple(step for step in run.steps.steps() if step.number < length)
        inputs = {"float64": state_tensors(start)}
        yield FreeCase(name=f"{length} steps of {run.steps.total}", inputs=inputs, run=run, steps=steps, start=start, folder=folder)


@dataclass(frozen=True, kw_only=True, eq=False)
class FreeAsk:
    """Sets the state that a run begins with, takes the steps, and asks for the state after the last (an Ask)."""

    case: FreeCase

    def key(self) -> tuple[object, ...]:
        """Equal for the same case."""
        return "train_steps", id(self.case)

    def send(self, process: StackProcess) -> Several:
        """Has the session opened, which it waits for; and asks, which it does not."""
        session = opened(process, self.case.run)
        return Several(
            parts=(
                ("", process.submit("train_state", session, state_tensors(self.case.start))),
                *(
                    (f"step{number}.", process.submit("train_step", {**session, "number": step.number}))
                    for number, step in enumerate(self.case.steps)
                ),
                ("", process.submit("train_state", session)),
            )
        )

    def require(self, stack: str, answered: Arrays) -> None:
        """As StepAsk.require."""
        require(stack, expected_state(self.case.run), [f"step{number}." for number in range(len(self.case.steps))], answered)


def same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Two stacks against each other."""
    (first,), (second,) = (stack.answers for stack in answered)
    return _judged(case, first, second, answered, false_alarm)


def precision(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Against the reference, which errs as much."""
    assert isinstance(case, FreeCase)
    return _judged(case, answered[0].answers[0], case.exact(), answered, false_alarm)


def _judged(case: Case, observed: Arrays, wanted: Arrays, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Updates, exactly; loss and norm of each step, then m, v and the weights after the last."""
    assert isinstance(case, FreeCase)
    updates = np.array(case.start.updates + sum(bool(step.batches) for step in case.steps), np.int64)
    declared = [one for stack in answered for one in stack.elementary]
    rows = case.response(trajectory_judges.worst_ulp(case.run.layout, declared)).rows
    judged = partial(trajectory_judges.within, rows, observed, wanted, dtype="float64", sides=2, false_alarm=false_alarm)
    return [trajectory_judges.ledger("updates", observed["updates"], updates), *judged()]
