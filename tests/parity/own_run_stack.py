"""Two stacks that take a user's run, in this process: the float64 reference, with what a test changes in it; and such a run's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from contract.worker import files
from contract.worker.answers import Answer
from contract.worker.capabilities import Capabilities, Training
from contract.worker.discover import StackInfo
from contract.worker.files import FileReference
from tests.contract.model import tiny_checkpoint
from tests.contract.run import small_run
from tests.contract.run.gate_facts import ABLE, TRAINING
from tests.parity.graph_stack import CAPABILITIES as GRAPHS
from tests.parity.graph_stack import GraphStack
from tests.parity.numpy_stack import Done
from tests.parity.trajectory_stack import TrajectoryStack


def stored(tensor: np.ndarray | FileReference) -> np.ndarray:
    return files.load(tensor) if isinstance(tensor, FileReference) else tensor


PATHS = ("chunked_loss", "fused_attention", "fused_lora")


class OwnRunStack(GraphStack):
    """Whole graphs, training sessions, and the paths that it says its runs take."""

    def __init__(self, name: str, *, paths: object = PATHS, steps: TrajectoryStack | None = None, **graphs: Any) -> None:
        super().__init__(name, **graphs)
        self.training: str | None = None
        self.busy: list[tuple[int, int]] = []
        self._paths, self._steps = paths, steps or TrajectoryStack(name)

    def request(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Answer:
        return self.submit(request, values, tensors).result()

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None) -> Done:
        if request == "train_paths":
            self.asked.append(request)
            paths = list(self._paths) if isinstance(self._paths, tuple) else self._paths
            return Done(Answer({"paths": paths}, {}, (0, 1)))
        if request.startswith("train_"):
            return self._steps.submit(request, values, tensors)
        return super().submit(request, values, {name: stored(tensor) for name, tensor in (tensors or {}).items()})


def declared(lane: str, training: Mapping[str, Any] | None = None, **changed: Any) -> Capabilities:
    """What such a stack declares: it takes LoRA in float32, packed and with patterns, and has sessions."""
    takes = {**TRAINING, **ABLE, "sessions": ["float32", "float64"], **(training or {})}
    fields = {"lane": lane, "training": Training.model_validate(takes), "requests": ("train", "train_paths"), **changed}
    return GRAPHS.model_copy(update=fields)


def two(**of_beta: Any) -> dict[str, StackInfo]:
    """`alpha`, which LoRA in the production lane leads to, and `beta` of the research lane."""
    leads = {"inferred_for": [{"lane": "production", "methods": ["lora"]}], "bases": {"lora": ["none"]}}
    mine = declared("production", {**leads}), declared("research", {"inferred_for": [], "bases": {"lora": ["none", "nf4"]}}, **of_beta)
    return {name: StackInfo(name=name, command=("nothing",), capabilities=it) for name, it in zip(("alpha", "beta"), mine, strict=True)}


def write(folder: Path, **changed: Any) -> Path:
    """Model, tokenizer and rows in a folder, and a contract over them: LoRA in float32, 2 x 2 rows a step."""
    small_run.make(folder)
    tiny_checkpoint.write(folder / "model", vocab_size=30, num_hidden_layers=1)
    fields = {
        "adapter__method": "lora", "quant__base": "none", "exec__batch_size": 2, "exec__grad_accum": 2, "exec__seq_len": 8,
        "exec__warmup_steps": 2, "adapter__rank": 2, "adapter__alpha": 5.0, "adapter__dropout": 0.0, **changed,
    }  # fmt: skip
    path = folder / "run.json"
    path.write_text(small_run.run_of(folder, **fields).model_dump_json(exclude_none=True))
    return path


@contextmanager
def sets(stacks: Sequence[OwnRunStack], chosen: Mapping[str, object]) -> Iterator[list[dict[str, OwnRunStack]]]:
    """As parity.workers.sets: one."""
    yield [{stack.name: stack for stack in stacks if stack.name in chosen}]
