"""Tiny proxy graphs (tests/proxy_formula.py) opened in this process."""

from __future__ import annotations

import numpy as np

from contract.worker import taps
from contract.worker.plan import GraphPlan
from stacks.torch_qlora.ops import TorchQlora
from tests.proxy_formula import batch, tensors_of

GRAPH = "proxy"


def opened(wanted: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> TorchQlora:
    """A stack on CPU with the graph open."""
    stack = TorchQlora("CPU")
    stack.open(GRAPH, wanted.model_dump(mode="json"), tensors_of(wanted) if tensors is None else tensors)
    return stack


def gradients(wanted: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Every tap and every adapter gradient of the tiny batch."""
    return opened(wanted, tensors).gradients(GRAPH, list(taps.full_names(wanted)), batch(wanted)).tensors
