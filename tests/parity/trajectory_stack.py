"""A stack that answers training sessions, in this process: the float64 reference itself, with what a test changes in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from contract.data.steps import Step
from contract.training import session
from contract.training.account import Prepared
from contract.training.inputs import Run
from contract.training.stepwise import PARTS, Stepwise
from contract.training.trainer import StepDone, TrainerState
from contract.worker.answers import Answer, RequestFailed
from contract.worker.capabilities import Training
from contract.worker.stack import Reply
from parity.checks.trajectory_reference import taken, weights_of
from parity.reference import trajectory
from parity.reference.graph_optimizer import Settings
from parity.reference.trajectory import MicroBatch, Taken
from tests.contract.run.gate_facts import TRAINING
from tests.parity.graph_stack import CAPABILITIES as GRAPHS
from tests.parity.numpy_stack import Done

_TYPES = ("llama", "mistral", "gpt2", "qwen3")
_OPTIONS = ("sliding_window",)
_TRAINING = {
    **TRAINING, "graphs": {"full_causal": _TYPES, "qlora_proxy_v1": _TYPES}, "layout_options": _OPTIONS, "dropout": True, "packing": True,
    "patterns": True, "sessions": ["float32", "float64", "bfloat16"],
}  # fmt: skip
assert GRAPHS.graphs is not None
_GRAPHS = GRAPHS.graphs.model_copy(update={"nf4": True, "proxy": ("float32", "float64", "bfloat16")})
CAPABILITIES = GRAPHS.model_copy(update={"graphs": _GRAPHS, "training": Training.model_validate(_TRAINING)})

Arrays = dict[str, np.ndarray]
Spoil = Callable[[str, np.ndarray], np.ndarray]
"""(a name of a request's answer, what stands there) -> what is answered in its place."""


class Silent:
    """A channel that tells nobody."""

    cancelled = False

    def progress(self, **values: Any) -> None:
        """Says nothing."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a trainer makes of a step's settings and micro-batches, and of a state that it goes on from."""

    change: Callable[[Settings], Settings] = lambda settings: settings
    rebatch: Callable[[list[MicroBatch]], list[MicroBatch]] = lambda batches: batches
    restored: Callable[[TrainerState], TrainerState] = lambda state: state


class ReferenceTrainer:
    """contract.training.trainer.Trainer by the reference, but for its changes."""

    def __init__(self, run: Run, changes: Changes) -> None:
        self._run, self._changes = run, changes
        self._dtype = run.dtype or "float32"
        zeros = {name: np.zeros(matrix.shape, self._dtype) for name, matrix in run.initial.items()}
        initial = {name: matrix.astype(self._dtype) for name, matrix in run.initial.items()}
        self._state = TrainerState(adapter=initial, m=zeros, v=zeros, updates=0)

    def step(self, step: Step, learning_rate: float) -> StepDone:
        run, before, right = self._run, self._state, taken(self._run, step)
        settings = self._changes.change(replace(right.settings, lr=learning_rate))
        wrong = Taken(batches=self._changes.rebatch(list(right.batches)), settings=settings)
        done = trajectory.take(run.plan, weights_of(run), before, wrong)
        adapter, m, v = ({name: done[f"{part}.{name}"][0].astype(self._dtype) for name in run.initial} for part in PARTS)
        self._state = TrainerState(adapter=adapter, m=m, v=v, updates=before.updates + 1)
        return StepDone(loss=float(done["loss"][0]), grad_norm=float(done["grad_norm"][0]), positions=0, memory_bytes=None)

    def loss_sum(self, batch: object) -> float:
        raise NotImplementedError

    def state(self) -> TrainerState:
        return self._state

    def restore(self, state: TrainerState) -> None:
        self._state = self._changes.restored(state)


class TrajectoryStack:
    """What the engine needs of a StackProcess.

    Args:
        changes: of its trainer.
        spoil: what it makes of an answer, by name.
        drop: a tensor that it does not answer.
        fails: a request that it refuses.
    """

    def __init__(
        self, name: str, *, spoil: Spoil = lambda name, value: value, drop: str = "", fails: str = "", **changes: Any,
    ) -> None:  # fmt: skip
        self.name, self._spoil, self._drop, self._fails = name, spoil, drop, fails
        self.device = "CPU"
        self.training: str | None = None
        self.asked: list[str] = []
        self.busy: list[tuple[int, int]] = []
        self._changes = Changes(**changes)
        self._stepwise = Stepwise(lambda run: ReferenceTrainer(run, self._changes))

    def request(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Answer:
        """As StackProcess.request."""
        return self.submit(request, values, tensors).result()

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Done:
        """Computes at once."""
        self.asked.append(request)
        started = time.monotonic_ns()
        if request == self._fails:
            return Done(RequestFailed(self.name, "ValueError", "it does not like that", ""))
        own = self._stepwise
        method = {"train_open": own.open, "train_state": own.state, "train_step": own.step, "train": self._train}[request]
        reply = method(**values, **({"tensors": tensors} if tensors else {}))
        answer = {name: self._spoil(name, value) for name, value in reply.tensors.items() if name != self._drop}
        return Done(Answer(reply.values, answer, (started, time.monotonic_ns())))

    def _train(self, **values: Any) -> Reply:
        return session.train(Silent(), lambda run: Prepared(trainer=ReferenceTrainer(run, self._changes)), **values)  # type: ignore[arg-type]
