"""A stack that saves, merges, scores and trains, in this process: the reference itself, with what a test changes in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.opening import named
from contract.artifacts.saved import of_plan, write_both
from contract.data.batches import PADDING
from contract.data.steps import Step
from contract.errors import ContractError
from contract.model import checkpoint
from contract.training import session
from contract.training.account import Prepared
from contract.training.inputs import Run
from contract.training.trainer import StepDone, TrainerState
from contract.worker import graph
from contract.worker.answers import Answer, RequestFailed
from contract.worker.plan import GraphPlan, Lora
from contract.worker.score import LOGITS, Score, require_tokens
from parity.reference import artifact, nf4
from parity.reference.artifact import Linear
from parity.reference.graph import Batch, Oracle
from tests.parity.graph_stack import ChangePlan, GraphStack, Spoil
from tests.parity.numpy_stack import Done
from tests.parity.trajectory_stack import CAPABILITIES as TRAINS

TYPES = ("gpt2", "llama", "qwen2")
GRAPHS = TRAINS.graphs
assert GRAPHS is not None
CAPABILITIES = TRAINS.model_copy(
    update={
        "requests": (*TRAINS.requests, "save", "merge", "score", "train"), "scores": dict.fromkeys(TYPES, ("float32", "float64")),
        "graphs": GRAPHS.model_copy(update={"nf4": True}),
    }
)  # fmt: skip
WITNESS = TRAINS.model_copy(
    update={
        "lane": "witness", "requests": ("score",), "operations": {}, "graphs": None, "training": None,
        "scores": dict.fromkeys(TYPES, ("float32",)),
    }
)  # fmt: skip


class ToyTrainer:
    """A trainer whose state depends on every step that it took and on where it began."""

    def __init__(self, run: Run) -> None:
        zeros = {name: np.zeros_like(matrix) for name, matrix in run.initial.items()}
        self._state = TrainerState(adapter=dict(run.initial), m=zeros, v=zeros, updates=0)

    def step(self, step: Step, learning_rate: float) -> StepDone:
        before = self._state
        adapter = {name: matrix * np.float32(0.5) + np.float32(1 + step.number) for name, matrix in before.adapter.items()}
        self._state = replace(before, adapter=adapter, updates=before.updates + 1)
        return StepDone(loss=1.0, grad_norm=1.0, positions=1, memory_bytes=None)

    def loss_sum(self, batch: object) -> float:
        raise NotImplementedError

    def state(self) -> TrainerState:
        return self._state

    def restore(self, state: TrainerState) -> None:
        self._state = state


class Channel:
    """Hears nothing."""

    cancelled = False

    def progress(self, **values: Any) -> None: ...


class ArtifactStack(GraphStack):
    """What the engine needs of a StackProcess.

    Args:
        saves, loads: what it makes of the plan that it saves an adapter by, or loads one with.
        merges: what it makes of what a linear is merged from.
        places: whether its graph holds W' after a merge.
        spoil: as of GraphStack; of `score.logits`, and with a prompt `cached.logits`, too.
        resumes: what it makes of the checkpoint that it is to go on from.
        refuses: the error with which it refuses another's.
    """

    device = "CPU"

    def __init__(
        self, name: str, *, saves: ChangePlan = lambda plan: plan, loads: ChangePlan = lambda plan: plan,
        merges: Callable[[Linear], Linear] = lambda linear: linear, places: bool = True, spoil: Spoil = lambda name, answer: answer,
        resumes: Callable[[str | None], str | None] = lambda path: path, refuses: str = "",
    ) -> None:  # fmt: skip
        super().__init__(name, spoil=spoil)
        self._saves, self._loads, self._merges, self._places = saves, loads, merges, places
        self._resumes, self._refuses = resumes, refuses

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Done:
        """Computes at once."""
        if request != "train":
            return super().submit(request, values, tensors or {})
        try:
            resume = self._resumes(values["resume"])
            reply = session.train(Channel(), self._prepared, **{**values, "resume": resume})  # type: ignore[arg-type]
        except ContractError as error:
            return Done(RequestFailed(self.name, "ContractError", self._refuses or str(error), ""))
        return Done(Answer(reply.values, {}, (0, 1)))

    def _prepared(self, run: Run) -> Prepared:
        return Prepared(trainer=ToyTrainer(run))

    def _save(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {name: self._tensors[name] for name in graph.adapter(self._plan)}
        write_both(of_plan(self._saves(self._plan), own), Path(values["folder"]))
        return {}

    def _merge(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {name: self._tensors[name] for name in graph.adapter(self._plan)}
        linears = artifact.drawn(self._plan.lora, own)
        found = {path: artifact.merged(self._base(path), self._merges(linear)) for path, linear in linears.items()}
        held = {name: self._base(name) for name in graph.weights(self._plan)}
        self._tensors = held | (found if self._places else {})
        self._plan = self._plan.model_copy(update={"lora": Lora(rank=1, alpha=1.0, targets=()), "base": None})
        return found

    def _forward(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._tensors |= {name: self._base(name) for name in graph.weights(self._plan)}
        self._plan = self._plan.model_copy(update={"base": None})
        return super()._forward(values, tensors)

    def _base(self, name: str) -> np.ndarray:
        return dequantized(self._plan, name, self._tensors[name])

    def _score(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = Score.model_validate(dict(values))
        files = named(request)
        plan, tokens = self._loads(files.plan), require_tokens(request, files.plan, tensors)
        adapter = {} if files.adapter is None else tensors_of(files.adapter)

        def weight(name: str) -> np.ndarray:
            return dequantized(plan, name, checkpoint.load(files.checkpoint, name))

        labels = np.where(tokens.segments_BT == PADDING, -100, tokens.ids_BT)
        labels[:, 1:][tokens.segments_BT[:, 1:] != tokens.segments_BT[:, :-1]] = -100
        batch = Batch(ids=tokens.ids_BT, labels=labels, positions=tokens.positions_BT, segments=tokens.segments_BT)
        oracle = Oracle(plan.model_copy(update={"base": None}), weight, adapter)
        logits = oracle.graph(batch, keep=lambda name: name == LOGITS).taps[LOGITS]
        name = "score.logits" if request.prompt is None else "cached.logits"
        return {LOGITS: self._spoil(name, logits[:, (request.prompt or 1) - 1 :]).astype(request.dtype)}


def dequantized(plan: GraphPlan, name: str, weight: np.ndarray) -> np.ndarray:
    """A weight as an NF4 base without nested absmax holds it."""
    if plan.base is None or name.rpartition(".")[2] not in plan.layout.linears:
        return weight
    quantized = nf4.quantize(weight, plan.base.block_size)
    return nf4.dequantize(quantized.packed, quantized.absmax, plan.base.block_size, (weight.shape[0], weight.shape[1]))
