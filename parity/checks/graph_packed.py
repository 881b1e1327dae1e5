"""Whole graphs as cases that travel, and smaller cases of the same graph.

A small graph's weights travel as they are, a checkpoint's by reference. A checkpoint's adapter is as large as a file may not be: where it
is what its seed gives, the seed travels, with the hash of what it gave.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contract.model import headers
from contract.worker import graph
from contract.worker.files import FileReference
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan
from parity.checks.check import Arrays
from parity.checks.graph_case import GraphCase
from parity.checks.graph_draws import adapter_of
from parity.checks.packed import Packed, Tensor, packs, unpacks
from parity.reference.graph import Batch

MOST_BLOCKS = 1024
"""No known model has a quarter of it; a plan is as large as it says, so that a number in a file must not ask for gigabytes."""

MOST_RANKS = 1024
"""Of a linear's LoRA, likewise."""

FEWEST_TOKENS = 2


@packs(GraphCase)
def pack(case: GraphCase) -> Packed:
    """Plan, batch, weights, adapter, seed."""
    tensors: dict[str, Tensor] = {f"batch.{name}": array for name, array in case.batch.tensors().items()}
    tensors |= {f"weight.{name}": case.weights[name] for name in graph.weights(case.plan)}
    drawn = _drawn(case)
    if drawn is None:
        tensors |= {f"adapter.{name}": array for name, array in case.adapter.items()}
    if case.real is not None:
        tensors["real"] = case.real
    fields = {"name": case.name, "plan": case.plan.model_dump(mode="json"), "seed": case.seed, "drawn": drawn}
    return Packed(kind="graph", fields=fields, tensors=tensors)


@unpacks("graph")
def unpack(packed: Packed) -> GraphCase:
    """The case again.

    Raises:
        ValueError, KeyError, TypeError: what is no plan, or tensors that are not the plan's; an adapter that this machine draws otherwise.
    """
    fields = packed.fields
    plan = _plan(fields["plan"])
    own: dict[str, dict[str, Any]] = {"batch": {}, "weight": {}, "adapter": {}}
    for key, tensor in packed.tensors.items():
        group, dot, name = key.partition(".")
        if dot:
            own[group][name] = tensor
    _require_weights(plan, own["weight"])
    batch = Batch(**own["batch"])
    graph.require_batch(plan, batch.ids, batch.labels, batch.positions, batch.segments)
    seed = fields["seed"]
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; allowed: a whole number from 0")
    adapter = own["adapter"] if fields["drawn"] is None else _redrawn(plan, seed, fields["drawn"])
    graph.require(graph.adapter(plan), adapter, "adapter")
    real = packed.tensors.get("real")
    return GraphCase(
        name=str(fields["name"]), inputs={"float64": batch.tensors()}, real=real if isinstance(real, FileReference) else None, plan=plan,
        weights=own["weight"], adapter=adapter, batch=batch, seed=seed,
    )  # fmt: skip


def smaller(case: GraphCase, where: tuple[int, ...]) -> Iterator[GraphCase]:
    """The same graph on fewer tokens, ever fewer: one sequence, then its first half, and so on.

    where: of a failing element; where that begins with a sequence, this one is kept.
    """
    sequences, tokens = case.batch.ids.shape
    sequence = where[0] if where and where[0] < sequences else 0
    length = tokens
    while length >= FEWEST_TOKENS:
        one = {name: array[sequence : sequence + 1, :length].copy() for name, array in case.batch.tensors().items()}
        if (one["labels"][:, 1:] != IGNORE_INDEX).any() and (sequences, tokens) != (1, length):
            name = f"sequence {sequence}, {length} tokens of: {case.name}"
            batch = Batch(**one)
            yield dataclasses.replace(case, name=name, batch=batch, inputs={"float64": batch.tensors()}, _made={})
        length //= 2


def _plan(fields: Any) -> GraphPlan:
    """A plan from outside, of which nothing is made before its size is known."""
    layout = fields["layout"]
    for name, number in (("num_hidden_layers", layout["num_hidden_layers"]), ("middle_blocks", fields.get("middle_blocks"))):
        if number is not None and not (isinstance(number, int) and 0 <= number <= MOST_BLOCKS):
            raise ValueError(f"{name} is {number!r}; allowed: 0 to {MOST_BLOCKS}")
    plan = GraphPlan.model_validate(fields)
    most = max(plan.lora.rank, *plan.lora.rank_pattern.values(), 0)
    if most > MOST_RANKS:  # an adapter that is drawn again takes no room in the file
        raise ValueError(f"a rank is {most}; allowed: {MOST_RANKS} at most")
    return plan


def _require_weights(plan: GraphPlan, weights: Mapping[str, Tensor]) -> None:
    """Every weight of the plan, in its shape: what is computed is as large as they are, whatever the plan says."""
    expected = graph.weights(plan)
    arrays = {name: tensor for name, tensor in weights.items() if isinstance(tensor, np.ndarray)}
    graph.require({name: it for name, it in expected.items() if not isinstance(weights.get(name), FileReference)}, arrays, "weights")
    for name, tensor in weights.items():
        if not isinstance(tensor, FileReference):
            continue
        if name not in expected or _shape(tensor) != expected[name][0]:
            raise ValueError(f"weights: {name} is the checkpoint's {tensor.tensor}; allowed: one of this graph's weights, in its shape")


def _shape(reference: FileReference) -> tuple[int, ...]:
    """That of a checkpoint's tensor, without reading it."""
    whole = headers.read(Path(reference.path))[reference.tensor].shape
    shape = (*whole[:-1], len(range(whole[-1])[reference.start : reference.stop]))
    return shape[::-1] if reference.transposed else shape


def _drawn(case: GraphCase) -> dict[str, Any] | None:
    """How the adapter of a checkpoint is drawn; None where it isn't drawn so."""
    if not any(isinstance(weight, FileReference) for weight in case.weights.values()):
        return None
    digest = _digest(case.adapter)
    for initial in (True, False):
        if _digest(adapter_of(case.plan, case.seed, initial=initial)) == digest:
            return {"initial": initial, "sha256": digest}
    return None


def _redrawn(plan: GraphPlan, seed: int, drawn: Mapping[str, Any]) -> Arrays:
    adapter = adapter_of(plan, seed, initial=bool(drawn["initial"]))
    if _digest(adapter) != drawn["sha256"]:
        raise ValueError(f"seed {seed} draws another adapter here than where the failure was stored; take the NumPy of that run")
    return adapter


def _digest(adapter: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(adapter.items()):
        digest.update(f"{name} {array.shape} {array.dtype.name}\n".encode() + array.tobytes())
    return digest.hexdigest()
