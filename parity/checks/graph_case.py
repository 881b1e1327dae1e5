"""A whole graph as a case: its plan, weights, adapter and batch; and the request that asks a stack for all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from contract.worker import files, graph, taps
from contract.worker.answers import ProtocolBroken
from contract.worker.files import FileReference
from contract.worker.plan import GraphPlan
from contract.worker.process import Pending, StackProcess
from parity.checks.check import Arrays, Case
from parity.reference import nf4
from parity.reference.graph import Batch

Weights = Mapping[str, np.ndarray | FileReference]


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphCase(Case):
    """One model and one batch.

    plan:     in float64 (`in_dtype`: in bfloat16), without production paths
    weights:  base weights by name, as arrays or in files
    adapter:  A and B of each linear, float32
    batch:    ids, labels, and positions and segments where sequences are packed or padded
    seed:     of the perturbation
    """

    plan: GraphPlan
    weights: Weights
    adapter: Arrays
    batch: Batch
    seed: int

    @property
    def kind(self) -> str:
        """The graph, and whether its sequences are packed."""
        return f"{self.plan.model_dump_json()} {self.batch.segments is not None}"

    def weight(self, name: str) -> np.ndarray:
        """A base weight as the graph means it: float32, of an NF4 base dequantised."""
        if self.plan.base is None or name.rpartition(".")[2] not in (*self.plan.layout.linears, *_heads(self.plan)):
            return stored(self.weights[_source(self.plan, name)])
        return self.once(f"nf4 {name}", lambda: self._dequantized(name))

    def in_dtype(self, dtype: str) -> GraphCase:
        """What a graph in a dtype is held against: in bfloat16 weights and adapter are rounded to it, as the graph means them."""
        return self if dtype != "bfloat16" else self.once("bfloat16", self._in_bfloat16)

    def _in_bfloat16(self) -> GraphCase:
        return _InBfloat16(
            name=self.name, inputs=self.inputs, real=self.real, plan=self.plan.model_copy(update={"dtype": "bfloat16"}),
            weights=self.weights, adapter={name: to_bfloat16(matrix) for name, matrix in self.adapter.items()}, batch=self.batch,
            seed=self.seed,
        )  # fmt: skip

    def _dequantized(self, name: str) -> np.ndarray:
        base, weight = self.plan.base, stored(self.weights[_source(self.plan, name)])
        assert base is not None
        quantized = nf4.quantize(weight, base.block_size)
        absmax = quantized.absmax
        if base.double_quant:
            offset = stored(self.weights[f"{name}.offset"])
            absmax = nf4.unnest(*nf4.nest(absmax, offset), offset)
        return nf4.dequantize(quantized.packed, absmax, base.block_size, (weight.shape[0], weight.shape[1]))


class _InBfloat16(GraphCase):
    """A case whose numbers are bfloat16's, and whose reference is a bfloat16 graph's."""

    def weight(self, name: str) -> np.ndarray:
        """As GraphCase.weight, rounded."""
        return to_bfloat16(super().weight(name))


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, ties to even, in float32."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def _heads(plan: GraphPlan) -> tuple[str, ...]:
    """The proxy graph's head, which is made of the embedding, and in NF4 like its other linears."""
    return (taps.LM_HEAD,) if plan.graph == "qlora_proxy_v1" else ()


def _source(plan: GraphPlan, name: str) -> str:
    """The stored weight that a linear is made of."""
    return "embedding" if name in _heads(plan) else name


def offsets(plan: GraphPlan, weights: Weights) -> dict[str, np.ndarray]:
    """NAME.offset of every linear of an NF4 base whose offsets are given."""
    assert plan.base is not None
    block_size = plan.base.block_size
    names = [name for name in graph.weights(plan) if name.endswith(".offset")]
    return {name: nf4.offset(stored(weights[_source(plan, name.removesuffix(".offset"))]), block_size) for name in names}


def stored(weight: np.ndarray | FileReference) -> np.ndarray:
    """A weight from where it lies, float32."""
    return (files.load(weight) if isinstance(weight, FileReference) else weight).astype(np.float32, copy=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphAsk:
    """Forward and backward pass of a case's graph, every tap and every adapter gradient (an Ask)."""

    case: GraphCase
    plan: GraphPlan

    @property
    def wanted(self) -> tuple[str, ...]:
        """The taps that are asked for: all that the plan's paths hold."""
        return taps.full_names(self.plan)

    def key(self) -> tuple[object, ...]:
        """Equal for the same case and plan."""
        return id(self.case), self.plan.model_dump_json()

    def send(self, process: StackProcess) -> Pending:
        """Has the graph opened, and asks; waits for the first and not for the second."""
        return _ask(process, "gradients", self.case, self.plan, self.wanted)

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against the table of taps."""
        require_answer(stack, _expected(self.case, self.plan, self.wanted, gradients=True), answered)


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardAsk:
    """The same graph through `forward`, which may take other kernels than a pass that keeps what gradients need (an Ask)."""

    case: GraphCase
    plan: GraphPlan

    @property
    def wanted(self) -> tuple[str, ...]:
        """What a user of the forward pass is after."""
        logits = "logits" if self.plan.graph == "full_causal" else taps.LM_HEAD
        return ("loss",) if "chunked_loss" in self.plan.paths else (logits, "loss")

    def key(self) -> tuple[object, ...]:
        """Equal for the same case and plan."""
        return "forward", id(self.case), self.plan.model_dump_json()

    def send(self, process: StackProcess) -> Pending:
        """As GraphAsk.send."""
        return _ask(process, "forward", self.case, self.plan, self.wanted)

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against the table of taps."""
        require_answer(stack, _expected(self.case, self.plan, self.wanted, gradients=False), answered)


def _ask(process: StackProcess, request: str, case: GraphCase, plan: GraphPlan, wanted: tuple[str, ...]) -> Pending:
    open_graph(process, plan, case.weights, case.adapter)
    return process.submit(request, {"graph": process.graph, "taps": list(wanted)}, case.batch.tensors())


def _expected(case: GraphCase, plan: GraphPlan, wanted: tuple[str, ...], *, gradients: bool) -> graph.Expected:
    batch, tokens = case.batch.ids.shape
    return graph.expected_graph_answer(plan, wanted, batch, tokens, gradients=gradients, positions=case.batch.positions is not None)


def open_graph(process: StackProcess, plan: GraphPlan, weights: Weights, adapter: Arrays) -> None:
    """Has a stack hold the plan's graph with this adapter; only the adapter travels where the graph is open already.

    It is opened with another adapter, all zeros, and then given this one: what a stack does with `state` shows in every answer.

    Raises:
        HarnessError, RequestFailed: as StackProcess.request.
    """
    needed = {name: weights[name] for name in graph.weights(plan)}
    own = {name: adapter[name] for name in graph.adapter(plan)}
    name = _identity(plan, needed)
    if process.graph != name:
        process.graph = None
        zeros = {matrix: np.zeros_like(array) for matrix, array in own.items()}
        process.request("open", {"graph": name, "plan": plan.model_dump(mode="json")}, {**needed, **zeros})
        process.graph = name
    if own:
        process.request("state", {"graph": name}, own)


def require_answer(stack: str, expected: graph.Expected, answered: Arrays) -> None:
    """Holds an answer's tensors against their shapes and dtypes.

    Raises:
        ProtocolBroken: one is missing, extra, of the wrong shape or dtype.
    """
    got = {name: (tensor.shape, tensor.dtype.name) for name, tensor in answered.items()}
    for name in sorted(set(expected) | set(got)):
        if got.get(name) != expected.get(name):
            raise ProtocolBroken(f"{stack}: broke the protocol: answered {name} as {got.get(name)}, must be {expected.get(name)}")


def _identity(plan: GraphPlan, weights: Weights) -> str:
    digest = hashlib.sha256(plan.model_dump_json().encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name}\n".encode())
        digest.update(repr(replace(weight, path="")).encode() if isinstance(weight, FileReference) else weight.tobytes())
    return digest.hexdigest()
