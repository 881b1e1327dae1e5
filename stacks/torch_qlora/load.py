"""A model from disk, and an adapter on it, as a graph: what the request `generate` names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from contract.artifacts.adapter import Adapter
from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.opening import named
from contract.worker.generation import Answer, Generation, Opens
from contract.worker.graph import adapter as expected_adapter
from contract.worker.plan import GraphPlan
from contract.worker.serve import Channel
from contract.worker.stack import Reply
from stacks.torch_qlora.generate import generate
from stacks.torch_qlora.graph import Graph
from stacks.torch_qlora.weights import CheckpointWeights, CountedWeights


def respond(values: Mapping[str, Any], device: torch.device, channel: Channel | None = None) -> Reply:
    """The request `generate` (contract/worker/generation.py).

    Raises:
        ValueError: values that are no such request, or as `stacks.torch_qlora.generate.generate`.
        ContractError, ContractErrors, MissingError, NotSupported: as `open_model`.
    """
    request = Generation.model_validate(dict(values))
    started = time.monotonic()
    opened = open_model(request, device, lambda done, total: channel.progress(loaded=done, of=total) if channel else None)
    loaded = time.monotonic()
    sequences = generate(
        opened.graph,
        request.prompts,
        max_new_tokens=request.max_new_tokens,
        stop=request.stop,
        sampling=request.sampling,
        first_sequence=request.first_sequence,
        report=lambda new: channel.progress(new=list(new.items())) if channel else None,
        cancelled=lambda: channel is not None and channel.cancelled,
    )
    done = Answer(
        sequences=tuple(sequences), load_seconds=loaded - started, seconds=time.monotonic() - loaded, notes=opened.notes
    )  # fmt: skip
    return Reply(values=done.model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A graph with its adapter. notes: how it was put together, where the request leaves that to the adapter's file."""

    graph: Graph
    notes: tuple[str, ...]


def open_model(request: Opens, device: torch.device, report: Callable[[int, int], None] = lambda done, total: None) -> Opened:
    """The graph that a request asks for.

    Args:
        report: told how many weights were read, and of how many.

    Raises:
        ContractError, ContractErrors, MissingError: a file is missing or not sound, the adapter is not the model's, or it has LoRA where
            this graph has none.
        NotSupported: an architecture, an option or a dtype that this stack lacks.
    """
    opening = named(request)
    matrices = {} if opening.adapter is None else _every_matrix(opening.plan, opening.adapter)
    weights = CountedWeights(CheckpointWeights(opening.checkpoint), report)
    return Opened(graph=Graph(opening.plan, weights, matrices, device), notes=opening.notes)


def _every_matrix(plan: GraphPlan, adapter: Adapter) -> dict[str, np.ndarray]:
    """The matrices of a plan; those that the adapter lacks are zero, which adds nothing."""
    own = tensors_of(adapter)
    return {name: own[name] if name in own else np.zeros(shape, np.float32) for name, (shape, _) in expected_adapter(plan).items()}
