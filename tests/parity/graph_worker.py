"""A worker that opens whole graphs and training sessions, by the reference; its device says how its second answer goes wrong.

As a worker: `python graph_worker.py --device NAME`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contract.worker.serve import Channel, serve
from contract.worker.stack import Attributes, Reply, Tensors

if __name__ == "__main__":  # a script finds its own folder alone
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.parity.graph_stack import GraphStack
from tests.parity.numpy_stack import FOREVER
from tests.parity.trajectory_stack import TrajectoryStack

Arrays = dict[str, np.ndarray]

SPOILT = {"gradients": "layers.0.attention_norm", "train_step": "loss"}
"""Request -> the tensor of its answer that goes wrong."""

SECOND = 2


def _die(answer: Arrays, name: str) -> Arrays:
    print("no heap is left", file=sys.stderr, flush=True)
    os._exit(7)


def _hang(answer: Arrays, name: str) -> Arrays:
    time.sleep(FOREVER)
    return answer


WRONG: Mapping[str, Callable[[Arrays, str], Arrays]] = {
    "CPU": lambda answer, name: answer,
    "NAN": lambda answer, name: {**answer, name: np.full_like(answer[name], np.nan)},
    "MISSING": lambda answer, name: {own: array for own, array in answer.items() if own != name},
    "EXTRA": lambda answer, name: {**answer, "stray": answer[name]},
    "SHAPE": lambda answer, name: {**answer, name: answer[name][..., None]},
    "DTYPE": lambda answer, name: {**answer, name: answer[name].astype(np.float16)},
    "DIES": _die,
    "HANGS": _hang,
}


class GraphWorker:
    """The stack inside the worker."""

    def __init__(self, device: str) -> None:
        self._wrong, self._graphs, self._sessions = WRONG[device], GraphStack("graphs"), TrajectoryStack("sessions")
        self._asked = dict.fromkeys(SPOILT, 0)

    def probe(self) -> Reply:
        """Every device has both dtypes."""
        return Reply(values={"dtypes": ["float32", "float64"]})

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """Graphs and sessions alone are asked."""
        raise NotImplementedError(op)

    def open(self, **values: Any) -> Reply:
        return self._ask(self._graphs, "open", values)

    def state(self, **values: Any) -> Reply:
        return self._ask(self._graphs, "state", values)

    def forward(self, **values: Any) -> Reply:
        return self._ask(self._graphs, "forward", values)

    def gradients(self, **values: Any) -> Reply:
        return self._ask(self._graphs, "gradients", values)

    def block(self, **values: Any) -> Reply:
        return self._ask(self._graphs, "block", values)

    def train_open(self, **values: Any) -> Reply:
        return self._ask(self._sessions, "train_open", values)

    def train_state(self, **values: Any) -> Reply:
        return self._ask(self._sessions, "train_state", values)

    def train_step(self, **values: Any) -> Reply:
        return self._ask(self._sessions, "train_step", values)

    def _ask(self, stack: GraphStack | TrajectoryStack, request: str, values: dict[str, Any]) -> Reply:
        tensors = values.pop("tensors", None) or {}
        answer = stack.submit(request, values, tensors).result()
        if request in SPOILT:
            self._asked[request] += 1
        wrong = self._asked.get(request) == SECOND
        return Reply(values=answer.values, tensors=self._wrong(answer.tensors, SPOILT[request]) if wrong else answer.tensors)


def make(device: str, channel: Channel) -> GraphWorker:
    """The stack."""
    return GraphWorker(device)


if __name__ == "__main__":
    serve("graph_worker:make")
