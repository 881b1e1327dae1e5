"""A step of a run as a case, from a given state; and the requests that have a stack take it (docs/protocol.md, Training sessions)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from contract.data.steps import Step
from contract.model.checkpoint import load
from contract.training.inputs import Run, prepare
from contract.training.stepwise import DONE, PARTS, done_tensors, expected_state, state_tensors
from contract.training.trainer import TrainerState
from contract.worker.answers import Answer, HarnessError, ProtocolBroken, RequestFailed
from contract.worker.process import Pending, StackProcess
from parity.checks import trajectory_run
from parity.checks.check import Arrays, Case
from parity.judge import perturb
from parity.judge.perturb import Response
from parity.reference import trajectory
from parity.reference.graph import Batch
from parity.reference.graph_optimizer import Settings
from parity.reference.rounding import Noise

INITIAL = "initial."
"""Before a name of a state: as it is when a session was opened."""

RUNS = 30
"""Perturbed runs behind a threshold."""

NOTHING_LEARNED = 3
"""From this step on one update fewer is told, as if an earlier one had had nothing to learn: a stack that counts for itself is seen."""

_AT_ONCE = perturb.ROWS_AT_ONCE // RUNS
"""Of a model this small, every run goes through the graph together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCase(Case):
    """One optimiser step of a run.

    folder: holds the run's files for as long as the case lives.
    before: the state that the step starts from, the reference's own.
    """

    folder: tempfile.TemporaryDirectory[str]
    run: Run
    step: Step
    before: TrainerState

    @property
    def dtype(self) -> str:
        """In which the session computes, and the state is."""
        return self.run.plan.dtype

    @property
    def rate(self) -> float:
        """The step's learning rate."""
        return float(self.run.learning_rates[self.step.number])

    def compute(self, noise: Noise | None = None) -> dict[str, np.ndarray]:
        """What the step gives by the reference, with a leading axis of runs."""
        run, exec_ = self.run, self.run.contract.exec
        batches = [
            Batch(ids=one.ids_BT, labels=one.labels_BT, positions=one.positions_BT, segments=one.segments_BT) for one in self.step.batches
        ]
        settings = Settings(
            lr=self.rate, max_norm=exec_.max_grad_norm, weight_decay=exec_.weight_decay, host_errs=self.dtype == "float64"
        )  # fmt: skip
        return trajectory.take(run.plan, partial(load, run.checkpoint), self.before, batches, settings, noise=noise)

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
        _, made[ulp] = perturb.respond_to(self.compute, rows=_AT_ONCE, runs=RUNS, seed=self.step.number, ulp=ulp)
        return made[ulp]

    def ledger(self) -> dict[str, np.ndarray]:
        """What a stack must answer of the step's inputs, exactly."""
        told = done_tensors(self.step, loss=0.0, grad_norm=0.0, learning_rate=self.rate)
        return {name: value for name, value in told.items() if name not in (trajectory.LOSS, trajectory.NORM)} | {
            "updates": np.array(self.before.updates + 1, np.int64)
        }

    def initial(self) -> dict[str, np.ndarray]:
        """What a stack must answer of the state that a session begins with, exactly; of the first step alone."""
        return {f"{INITIAL}{name}": value for name, value in state_tensors(self.before).items()} if self.step.number == 0 else {}


def cases(dtype: str) -> Iterator[StepCase]:
    """The run's steps, each from the state that the reference has by then, which is rounded to the dtype after each step."""
    folder = tempfile.TemporaryDirectory(prefix="twostack-trajectory-")
    home = Path(folder.name)
    run = prepare(trajectory_run.write(home), cache=home / "cache", dtype="float64" if dtype == "float64" else None)
    zeros = {name: np.zeros(matrix.shape, dtype) for name, matrix in run.initial.items()}
    state = TrainerState(adapter={name: matrix.astype(dtype) for name, matrix in run.initial.items()}, m=zeros, v=zeros, updates=0)
    for step in run.steps.steps():
        inputs = {dtype: state_tensors(state)}
        case = StepCase(name=f"step {step.number + 1} of {run.steps.total}", inputs=inputs, folder=folder, run=run, step=step, before=state)
        exact = case.exact()
        yield case
        state = _state(exact, run, dtype, step.number + 1 - (step.number + 1 >= NOTHING_LEARNED))


def _state(exact: Arrays, run: Run, dtype: str, updates: int) -> TrainerState:
    adapter, m, v = ({name: exact[f"{part}.{name}"].astype(dtype) for name in run.initial} for part in PARTS)
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
        case, session = self.case, _session(self.case.run)
        if process.training != session or case.step.number == 0:
            process.training = None
            contract = case.run.contract.model_dump(mode="json")
            process.request("train_open", {"session": session, "contract": contract, "dtype": case.run.dtype})
            process.training = session
        opened = {"session": session}
        asked = [(INITIAL, process.submit("train_state", opened))] if case.step.number == 0 else []
        return Several(
            parts=(
                *asked,
                ("", process.submit("train_state", opened, state_tensors(case.before))),
                ("", process.submit("train_step", {**opened, "number": case.step.number})),
                ("", process.submit("train_state", opened)),
            )
        )

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against what a step and a state are; ledgers of another length are wrong, and no broken protocol.

        Raises:
            ProtocolBroken: a tensor is missing, extra, of the wrong shape or dtype.
        """
        state = expected_state(self.case.run)
        wanted = state | {name: ((), dtype) for name, dtype in DONE.items()}
        wanted |= {f"{INITIAL}{name}": tensor for name, tensor in state.items()} if self.case.step.number == 0 else {}
        for name in sorted({*wanted, *answered}):
            got = (answered[name].shape, answered[name].dtype.name) if name in answered else None
            if name in wanted and got is not None and name in ("samples", "batch_tokens") and len(got[0]) == 1:
                got = ((), got[1])
            if got != wanted.get(name):
                raise ProtocolBroken(f"{stack}: broke the protocol: answered {name} as {got}, must be {wanted.get(name)}")


@dataclass(frozen=True, kw_only=True)
class Several:
    """Requests on their way whose answers are one; each with what goes before its tensors' names."""

    parts: Sequence[tuple[str, Pending]]

    def result(self) -> Answer:
        """Waits for all of them.

        Raises:
            HarnessError, RequestFailed: the first that failed.
        """
        tensors: dict[str, np.ndarray] = {}
        busy: list[int] = []
        failed: list[HarnessError | RequestFailed] = []
        for before, pending in self.parts:
            try:
                answer = pending.result()
            except (HarnessError, RequestFailed) as error:
                failed.append(error)
                continue
            tensors |= {f"{before}{name}": tensor for name, tensor in answer.tensors.items()}
            busy += answer.busy_ns
        if failed:
            raise failed[0]
        return Answer({}, tensors, (min(busy), max(busy)))


def _session(run: Run) -> str:
    """Names a run and its dtype."""
    return hashlib.sha256(f"{run.contract.model_dump_json()} {run.dtype}".encode()).hexdigest()
