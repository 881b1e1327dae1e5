"""A stack that answers training sessions, in this process: the float64 reference itself, with what a test changes in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from contract.data.steps import Step
from contract.model.checkpoint import load
from contract.training.inputs import Run
from contract.training.stepwise import PARTS, Stepwise
from contract.training.trainer import StepDone, TrainerState
from contract.worker.answers import Answer, RequestFailed
from contract.worker.capabilities import Training
from parity.reference import trajectory
from parity.reference.graph import Batch
from parity.reference.graph_optimizer import Settings
from tests.contract.run.gate_facts import TRAINING
from tests.parity.graph_stack import CAPABILITIES as GRAPHS
from tests.parity.numpy_stack import Done

CAPABILITIES = GRAPHS.model_copy(update={"training": Training.model_validate({**TRAINING, "sessions": ["float32", "float64"]})})

Arrays = dict[str, np.ndarray]
Spoil = Callable[[str, np.ndarray], np.ndarray]
"""(a name of a request's answer, what stands there) -> what is answered in its place."""


class ReferenceTrainer:
    """contract.training.trainer.Trainer by the reference; `change` is what this one makes of a step's settings and batches."""

    def __init__(self, run: Run, change: Callable[[Settings], Settings], rebatch: Callable[[list[Batch]], list[Batch]]) -> None:
        self._run, self._change, self._rebatch = run, change, rebatch
        self._dtype = run.dtype or "float32"
        zeros = {name: np.zeros(matrix.shape, self._dtype) for name, matrix in run.initial.items()}
        initial = {name: matrix.astype(self._dtype) for name, matrix in run.initial.items()}
        self._state = TrainerState(adapter=initial, m=zeros, v=zeros, updates=0)

    def step(self, step: Step, learning_rate: float) -> StepDone:
        run, own, before = self._run, self._run.contract.exec, self._state
        batches = [
            Batch(ids=one.ids_BT, labels=one.labels_BT, positions=one.positions_BT, segments=one.segments_BT) for one in step.batches
        ]
        settings = Settings(lr=learning_rate, max_norm=own.max_grad_norm, weight_decay=own.weight_decay, host_errs=True)
        weight = partial(load, run.checkpoint)
        done = trajectory.take(run.plan, weight, before, self._rebatch(batches), self._change(settings))
        adapter, m, v = ({name: done[f"{part}.{name}"][0].astype(self._dtype) for name in run.initial} for part in PARTS)
        self._state = TrainerState(adapter=adapter, m=m, v=v, updates=before.updates + 1)
        return StepDone(loss=float(done["loss"][0]), grad_norm=float(done["grad_norm"][0]), positions=0, memory_bytes=None)

    def loss_sum(self, batch: object) -> float:
        raise NotImplementedError

    def state(self) -> TrainerState:
        return self._state

    def restore(self, state: TrainerState) -> None:
        self._state = state


class TrajectoryStack:
    """What the engine needs of a StackProcess.

    Args:
        change, rebatch: as of ReferenceTrainer.
        spoil: what it makes of an answer, by name.
        drop: a tensor that it does not answer.
        fails: a request that it refuses.
    """

    def __init__(
        self, name: str, *, change: Callable[[Settings], Settings] = lambda settings: settings,
        rebatch: Callable[[list[Batch]], list[Batch]] = lambda batches: batches, spoil: Spoil = lambda name, value: value, drop: str = "",
        fails: str = "",
    ) -> None:  # fmt: skip
        self.name, self._spoil, self._drop, self._fails = name, spoil, drop, fails
        self.training: str | None = None
        self.asked: list[str] = []
        self._stepwise = Stepwise(lambda run: ReferenceTrainer(run, change, rebatch))

    def request(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Answer:
        """As StackProcess.request."""
        return self.submit(request, values, tensors).result()

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Done:
        """Computes at once."""
        self.asked.append(request)
        started = time.monotonic_ns()
        if request == self._fails:
            return Done(RequestFailed(self.name, "ValueError", "it does not like that", ""))
        method = {"train_open": self._stepwise.open, "train_state": self._stepwise.state, "train_step": self._stepwise.step}[request]
        reply = method(**values, **({"tensors": tensors} if tensors else {}))
        answer = {name: self._spoil(name, value) for name, value in reply.tensors.items() if name != self._drop}
        return Done(Answer(reply.values, answer, (started, time.monotonic_ns())))
