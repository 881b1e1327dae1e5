"""A step of a run as a case, from a given state; and the requests that have a stack take it (docs/protocol.md, Training sessions)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from contract.data.steps import Step
from contract.training.inputs import Run, prepare
from contract.training.stepwise import DONE, PARTS, done_tensors, expected_state, state_tensors
from contract.training.trainer import TrainerState
from contract.worker.answers import ProtocolBroken
from contract.worker.process import StackProcess
from parity.checks import trajectory_files
from parity.checks.check import Arrays, Case
from parity.checks.several import Several
from parity.checks.trajectory_asking import opened
from parity.checks.trajectory_reference import taken, weights_of
from parity.checks.trajectory_run import TrainingRun
from parity.judge import perturb
from parity.judge.perturb import Response
from parity.reference import trajectory
from parity.reference.rounding import Noise
from parity.reference.trajectory import LOSS, NORM

INITIAL = "initial."
"""Before a name of a state: as it is when a session was opened."""

RUNS = 30
"""Perturbed runs behind a threshold."""

NOTHING_LEARNED = 3
"""From this step on one update fewer is told, as if an earlier one had had nothing to learn: a stack that counts for itself is seen."""

AT_ONCE = perturb.ROWS_AT_ONCE // RUNS
"""Of a model this small, every run goes through the graph together."""

Dtype = Literal["float64", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCase(Case):
    """One optimiser step of a run.

    before: the state that the step starts from, the reference's own.
    rows:   how many rows of activations one perturbed run takes, see parity.judge.perturb.ROWS_AT_ONCE.
    folder: holds the run's files for as long as the case lives, where they are not a user's.
    """

    run: Run
    step: Step
    before: TrainerState
    rows: int = AT_ONCE
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def dtype(self) -> str:
        """In which the session computes; its state is float32 in bfloat16."""
        return self.run.plan.dtype

    @property
    def rate(self) -> float:
        """The step's learning rate."""
        return float(self.run.learning_rates[self.step.number])

    def compute(self, noise: Noise | None = None) -> dict[str, np.ndarray]:
        """What the step gives by the reference, with a leading axis of runs."""
        return trajectory.take(self.run.plan, weights_of(self.run), self.before, taken(self.run, self.step), noise=noise)

    def exact(self) -> dict[str, np.ndarray]:
        """What the step gives by the reference: as a stack answers it."""
        return self.once("exact", lambda: {name: value[0] for name, value in self.compute().items()})

    def response(self, ulp: float) -> Response:
        """How the step responds to rounding errors; one for larger declared errors serves smaller ones.

        ulp: the worst that is declared of the functions that it takes.
        """
        made: dict[float, Response] = self.once("responses", dict)
        for larger, found in made.items():
            if larger >= ulp:
                return found
        _, made[ulp] = perturb.respond_to(self.compute, rows=self.rows, runs=RUNS, seed=self.step.number, ulp=ulp, dtype=self.dtype)
        return made[ulp]

    def ledger(self) -> dict[str, np.ndarray]:
        """What a stack must answer of the step's inputs, exactly."""
        told = done_tensors(self.step, loss=0.0, grad_norm=0.0, learning_rate=self.rate)
        updates = self.before.updates + bool(self.step.batches)
        return {name: value for name, value in told.items() if name not in (LOSS, NORM)} | {"updates": np.array(updates, np.int64)}

    def initial(self) -> dict[str, np.ndarray]:
        """What a stack must answer of the state that a session begins with, exactly; of the first step alone."""
        return {f"{INITIAL}{name}": value for name, value in state_tensors(self.before).items()} if self.begins else {}

    @property
    def begins(self) -> bool:
        """Whether the step is a run's first, from the state that a run begins with."""
        return self.step.number == 0 and self.before.updates == 0

    def without_gradient(self) -> list[str]:
        """The matrices whose gradient the structure makes exactly zero, and whose value is not: only decay moves them.

        Of a linear whose B is zero that is A, and the other way round.
        """
        zero = {name for name, matrix in self.before.adapter.items() if not np.any(matrix)}
        other = {".lora_a": ".lora_b", ".lora_b": ".lora_a"}
        return [name for name in self.before.adapter if name not in zero and f"{name[:-7]}{other[name[-7:]]}" in zero]


@cache
def opened_run(spec: TrainingRun, dtype: Dtype) -> tuple[tempfile.TemporaryDirectory[str], Run]:
    """A run of the table, ready to start, in a folder of its own: one for all checks, so that a session that is open serves them all."""
    folder = tempfile.TemporaryDirectory(prefix="twostack-trajectory-")
    home = Path(folder.name)
    return folder, prepare(trajectory_files.write(spec, home), cache=home / "cache", dtype="float64" if dtype == "float64" else None)


def cases(spec: TrainingRun, dtype: Dtype) -> Iterator[StepCase]:
    """The steps of a run that are asked for, each from the state that the reference has by then; and what else shows in one."""
    folder, run = opened_run(spec, dtype)
    for case in steps_of(run, folder=folder):
        if case.step.number in spec.asked:
            yield case
        if case.step.number == spec.decays_at:
            yield from decays(case)
        if case.step.number == spec.asked[-1]:
            return


def steps_of(run: Run, *, rows: int = AT_ONCE, folder: tempfile.TemporaryDirectory[str] | None = None) -> Iterator[StepCase]:
    """A run's steps, each from the state that the reference has by then, which is rounded to the state's dtype after each step."""
    state, updates = initial_state(run), 0
    for step in run.steps.steps():
        name = f"step {step.number + 1} of {run.steps.total}"
        case = case_of(name, run, step, state, rows=rows, folder=folder)
        exact = case.exact()
        yield case
        updates += bool(step.batches)
        state = _state(exact, run, updates - (step.number + 1 >= NOTHING_LEARNED))


def decays(case: StepCase) -> Iterator[StepCase]:
    """The same step where A's gradients are exactly zero, and where B's are: m and v stay zero, and only decay moves a weight."""
    rng = np.random.default_rng(case.step.number)
    for kind, other in (("a", "b"), ("b", "a")):
        zeros = {name: np.zeros_like(matrix) for name, matrix in case.before.m.items()}
        drawn = {
            name: (0.3 * rng.standard_normal(matrix.shape)).astype(matrix.dtype) if name.endswith(f"lora_{kind}") else np.zeros_like(matrix)
            for name, matrix in case.before.adapter.items()
        }
        before = TrainerState(adapter=drawn, m=zeros, v=zeros, updates=case.before.updates)
        yield case_of(f"{case.name}, where {other.upper()} is zero", case.run, case.step, before, rows=case.rows, folder=case.folder)


def case_of(
    name: str, run: Run, step: Step, before: TrainerState, *, rows: int = AT_ONCE, folder: tempfile.TemporaryDirectory[str] | None = None
) -> StepCase:
    """A case of one step."""
    inputs = {str(run.plan.dtype): state_tensors(before)}
    return StepCase(name=name, inputs=inputs, run=run, step=step, before=before, rows=rows, folder=folder)


def initial_state(run: Run) -> TrainerState:
    """What a run begins with."""
    dtype = state_dtype(run)
    zeros = {name: np.zeros(matrix.shape, dtype) for name, matrix in run.initial.items()}
    return TrainerState(adapter={name: matrix.astype(dtype) for name, matrix in run.initial.items()}, m=zeros, v=zeros, updates=0)


def state_dtype(run: Run) -> str:
    """Of adapter, m and v."""
    return run.dtype or "float32"


def _state(exact: Arrays, run: Run, updates: int) -> TrainerState:
    adapter, m, v = ({name: exact[f"{part}.{name}"].astype(state_dtype(run)) for name in run.initial} for part in PARTS)
    return TrainerState(adapter=adapter, m=m, v=v, updates=updates)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepAsk:
    """Sets the state, takes the step, and asks for the state after it (an Ask); before the first step, for the initial state too."""

    case: StepCase

    def key(self) -> tuple[object, ...]:
        """Equal for the same case."""
        return "train_step", id(self.case)

    def send(self, process: StackProcess) -> Several:
        """Has the session opened, which it waits for; and asks, which it does not."""
        case = self.case
        session = opened(process, case.run, anew=case.begins)
        asked = [(INITIAL, process.submit("train_state", session))] if case.begins else []
        return Several(
            parts=(
                *asked,
                ("", process.submit("train_state", session, state_tensors(case.before))),
                ("", process.submit("train_step", {**session, "number": case.step.number})),
                ("", process.submit("train_state", session)),
            )
        )

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against what a step and a state are; ledgers of another length are wrong, and no broken protocol.

        Raises:
            ProtocolBroken: a tensor is missing, extra, of the wrong shape or dtype.
        """
        state = expected_state(self.case.run)
        initial = {f"{INITIAL}{name}": tensor for name, tensor in state.items()} if self.case.begins else {}
        require(stack, state | initial, ("",), answered)


LISTS = {"samples": 1, "batch_tokens": 1, "batches": 2}
"""Ledgers of a step that are lists, and their dimensions."""


def require(stack: str, state: dict[str, tuple[tuple[int, ...], str]], steps: Sequence[str], answered: Arrays) -> None:
    """Holds an answer against a state's tensors, and DONE's of each step, whose names begin with one of `steps`.

    Raises:
        ProtocolBroken: a tensor is missing, extra, of the wrong shape or dtype.
    """
    wanted = state | {f"{step}{name}": ((), dtype) for step in steps for name, dtype in DONE.items()}
    lists = {f"{step}{name}": dimensions for step in steps for name, dimensions in LISTS.items()}
    for name in sorted({*wanted, *answered}):
        got = (answered[name].shape, answered[name].dtype.name) if name in answered else None
        if got is not None and lists.get(name) == len(got[0]):
            got = ((), got[1])
        if got != wanted.get(name):
            raise ProtocolBroken(f"{stack}: broke the protocol: answered {name} as {got}, must be {wanted.get(name)}")
