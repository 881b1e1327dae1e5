"""A model from disk, and an adapter on it, as a graph: what the request `generate` names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contract.artifacts.adapter import Adapter
from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.by_path import by_path, require_causal
from contract.artifacts.convert import read_source
from contract.artifacts.merge_plan import open_base
from contract.artifacts.merge_plan import plan as plan_merge
from contract.model.checkpoint import Checkpoint, locate
from contract.run.spec import QuantSpec
from contract.worker.generation import Answer, Generation
from contract.worker.graph import adapter as expected_adapter
from contract.worker.plan import GraphPlan, Lora, Nf4
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


def open_model(request: Generation, device: torch.device, report: Callable[[int, int], None] = lambda done, total: None) -> Opened:
    """The graph that a request asks for.

    Args:
        report: told how many weights were read, and of how many.

    Raises:
        ContractError, ContractErrors, MissingError: a file is missing or not sound, the adapter is not the model's, or it has LoRA where
            this graph has none.
        NotSupported: an architecture, an option or a dtype that this stack lacks.
    """
    checkpoint = locate(request.model)
    adapter = None if request.adapter is None else _adapter(Path(request.adapter), checkpoint)
    base, notes = _base(request, adapter)
    plan = GraphPlan(layout=checkpoint.layout, dtype=request.dtype, lora=_lora(adapter), base=base)
    matrices = {} if adapter is None else _every_matrix(plan, adapter)
    return Opened(graph=Graph(plan, CountedWeights(CheckpointWeights(checkpoint), report), matrices, device), notes=notes)


def _adapter(path: Path, checkpoint: Checkpoint) -> Adapter:
    """An adapter of any format, or a training checkpoint's, by the graph's paths."""
    adapter = read_source(path).adapter
    plan_merge(adapter, open_base(checkpoint.path))  # every linear has its weight there
    return require_causal(by_path(adapter, checkpoint.layout), str(path))


def _base(request: Generation, adapter: Adapter | None) -> tuple[Nf4 | None, tuple[str, ...]]:
    """How the base is held: as the request says, else as the adapter was trained."""
    trained = None if adapter is None else adapter.quant
    wanted = request.base or ("none" if trained is None else trained.base_quant)
    notes = []
    if adapter is not None and trained is None and request.base is None:
        notes.append("the adapter does not say how its base was held in training: the base is plain; --base nf4 if it was NF4")
    if trained is not None and wanted != trained.base_quant:
        notes.append(f"the adapter was trained on base {trained.base_quant}: on base {wanted} it is another model")
    if wanted == "none":
        return None, tuple(notes)
    usual = QuantSpec()
    block_size = usual.block_size if trained is None or trained.block_size is None else trained.block_size
    double_quant = usual.double_quant if trained is None or trained.double_quant is None else trained.double_quant
    if adapter is not None and (trained is None or None in (trained.block_size, trained.double_quant)):
        taken = f"block_size {block_size}, double_quant {str(double_quant).lower()}"
        notes.append(f"the adapter does not say all of how an NF4 base was made: {taken} are taken")
    return Nf4(block_size=block_size, double_quant=double_quant), tuple(notes)


def _lora(adapter: Adapter | None) -> Lora:
    """An adapter's LoRA; a linear of its kinds that has none gets one of zeros, see `_every_matrix`."""
    if adapter is None:
        return Lora(rank=1, alpha=1.0, targets=())
    kinds = dict.fromkeys(path.rpartition(".")[2] for path in adapter.layer_order)
    return Lora(
        rank=adapter.rank,
        alpha=adapter.alpha,
        rslora=adapter.rslora,
        targets=tuple(kinds),
        rank_pattern=adapter.rank_pattern(),
        alpha_pattern=dict(adapter.alpha_pattern),
    )


def _every_matrix(plan: GraphPlan, adapter: Adapter) -> dict[str, np.ndarray]:
    """The matrices of a plan; those that the adapter lacks are zero, which adds nothing."""
    own = tensors_of(adapter)
    return {name: own[name] if name in own else np.zeros(shape, np.float32) for name, (shape, _) in expected_adapter(plan).items()}
