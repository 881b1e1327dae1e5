"""The open graph and the requests on it: `open`, `state`, `forward`, `gradients`, `block` (contract/worker/graph.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import torch

from contract.worker import taps as tap_names
from contract.worker.graph import (
    POSITIONS,
    ROPE_TABLES,
    SEGMENTS,
    adapter,
    expected_block_answer,
    expected_graph_answer,
    require,
    require_batch,
    require_block,
    section_adapter,
    weights,
)
from contract.worker.plan import GraphPlan
from contract.worker.stack import Attributes, NotSupported, Reply, Tensors
from stacks.torch_qlora import lora, nf4
from stacks.torch_qlora.attributes import DTYPES
from stacks.torch_qlora.graph import AnyGraph, GraphBatch, open_graph
from stacks.torch_qlora.merge import merge_graph, save_graph
from stacks.torch_qlora.taps import Taps

TorchTensors = Mapping[str, torch.Tensor]


class Session:
    """At most one open graph, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._name = ""
        self._graph: AnyGraph | None = None

    def open(self, name: str, attributes: Attributes, tensors: Tensors) -> Reply:
        """Opens a graph in place of the one that was open.

        Raises:
            ValueError: a plan or tensors that are not a graph's; the graph that was open stays.
            NotSupported: a plan that this stack does not run; the graph that was open stays.
        """
        plan = GraphPlan.model_validate(dict(attributes))
        _require_runnable(plan)
        require(weights(plan) | adapter(plan), tensors, "open")
        self._graph = None  # let go first: two graphs may not fit
        self._graph = open_graph(plan, tensors, tensors, self._device)
        self._name = name
        return Reply()

    def state(self, name: str, tensors: Tensors | None = None) -> Reply:
        """Sets the adapter, all of it; without tensors, answers it in float32.

        Raises:
            ValueError: a graph that is not open, or tensors that are not its adapter.
        """
        graph = self._opened(name)
        parameters = lora.parameters(graph)
        if tensors is None:
            return Reply(tensors={path: to_host(parameter.float().clone()) for path, parameter in parameters.items()})
        require(adapter(graph.plan), tensors, "state")
        with torch.no_grad():
            for path, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(np.array(tensors[path], dtype=np.float32)))
        return Reply()

    def forward(self, name: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """The wanted taps of the whole graph.

        Raises:
            ValueError: a graph that is not open or not whole, a tap that it lacks, or a batch that is not the layout's.
        """
        graph = self._opened(name)
        wanted = _require_whole(graph.plan, taps, tensors, gradients=False)
        shown = Taps(keep=wanted)
        with torch.no_grad():
            graph.whole(self._batch(tensors), shown)
        return Reply(tensors={tap: to_host(shown.recorded[tap]) for tap in wanted})

    def gradients(self, name: str, taps: Sequence[str], tensors: Tensors) -> Reply:
        """The wanted taps, and `grad.NAME` of the loss with respect to each adapter matrix.

        Raises:
            ValueError: as `forward`, or there are no labels.
        """
        graph = self._opened(name)
        wanted = _require_whole(graph.plan, taps, tensors, gradients=True)
        shown = Taps(keep={*wanted, "loss"}, attached=("loss",))
        with torch.enable_grad():
            graph.whole(self._batch(tensors), shown)
        gradients = _gradients([(shown.recorded["loss"], None)], lora.parameters(graph))
        return Reply(tensors={tap: to_host(shown.recorded[tap]) for tap in wanted} | gradients)

    def block(self, name: str, section: str, tensors: Tensors) -> Reply:
        """One section alone, on given inputs, overrides and cotangents.

        Raises:
            ValueError: a graph that is not open, a section that it does not hold, or tensors that are not the section's.
        """
        graph = self._opened(name)
        expected = expected_block_answer(graph.plan, section, tensors, *require_block(graph.plan, section, tensors))
        given = {tensor: self._to_device(array) for tensor, array in tensors.items()}
        bars, overrides = _named(given, "bar."), _named(given, "override.")
        leaves = _leaves(graph, section, given, overrides) if bars else {}
        for leaf in leaves.values():
            leaf.requires_grad_()
        full = {tap: tap if tap in ROPE_TABLES else tap_names.prefix(section) + tap for tap in (*expected, *overrides)}
        shown = Taps(
            keep=set(full.values()),
            attached={full[tap] for tap in bars},
            overrides={full[tap]: override for tap, override in overrides.items()},
        )
        with torch.set_grad_enabled(bool(bars)):
            graph.run_section(section, given, shown)
        gradients = _gradients([(shown.recorded[full[tap]], bar) for tap, bar in bars.items()], leaves)
        return Reply(tensors={tap: to_host(shown.recorded[full[tap]]) for tap in expected if not tap.startswith("grad.")} | gradients)

    def merge(self, name: str, linears: Sequence[str] | None = None) -> Reply:
        """See `stacks.torch_qlora.merge.merge_graph`."""
        return merge_graph(self._opened(name), linears)

    def save(self, name: str, folder: str) -> Reply:
        """See `stacks.torch_qlora.merge.save_graph`."""
        return save_graph(self._opened(name), folder)

    def _opened(self, name: str) -> AnyGraph:
        if self._graph is None:
            raise ValueError(f"graph {name!r} is asked for, and none is open; open it first")
        if name != self._name:
            raise ValueError(f"graph {name!r} is asked for, open is {self._name!r}; one graph is open at a time: open {name!r} first")
        return self._graph

    def _batch(self, tensors: Tensors) -> GraphBatch:
        given = {name: self._to_device(array) for name, array in tensors.items()}
        return GraphBatch(
            ids_BT=given["ids"], labels_BT=given.get("labels"), positions_BT=given.get(POSITIONS), segments_BT=given.get(SEGMENTS)
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        """A copy: what arrived may be read-only."""
        dtype = DTYPES["bfloat16"] if array.dtype.name == "bfloat16" else None
        return torch.tensor(array if dtype is None else array.astype(np.float32), dtype=dtype, device=self._device)


# Refusals


def _require_runnable(plan: GraphPlan) -> None:
    """Refuses a plan that this stack does not run."""
    if plan.base is not None:
        nf4.require_block_size(plan.base.block_size)
    if "nf4_linear" in plan.paths and plan.dtype == "float64":
        raise NotSupported(
            "torch_qlora runs the path nf4_linear in float32 and bfloat16 only, not in float64 (bitsandbytes returns uninitialised memory "
            "there); open without this path: the dequantised weights then go through a plain linear"
        )


def _require_whole(plan: GraphPlan, taps: Sequence[str], tensors: Tensors, *, gradients: bool) -> tuple[str, ...]:
    """Holds `forward` and `gradients` against the open graph; the wanted taps."""
    request = "gradients" if gradients else "forward"
    if set(plan.held) != set(tap_names.sections(plan.blocks)):
        raise ValueError(f"{request}: the open graph holds only {', '.join(plan.held[:4])} ...; ask for block, or open it without sections")
    unknown = sorted(set(tensors) - {"ids", "labels", POSITIONS, SEGMENTS})
    if unknown or "ids" not in tensors:
        raise ValueError(
            f"{request}: got the tensors {sorted(tensors)}, must be ids, labels where there is a loss, and positions and segments of a "
            "packed or padded batch"
        )
    require_batch(plan, tensors["ids"], tensors.get("labels"), tensors.get(POSITIONS), tensors.get(SEGMENTS))
    expected_graph_answer(plan, taps, *tensors["ids"].shape, gradients=False)
    if "labels" not in tensors and (gradients or "loss" in taps):
        raise ValueError(f"{request}: labels are missing, and the loss needs them; give labels [sequences, tokens]")
    return tuple(dict.fromkeys(taps))


# Tensors


def _leaves(graph: AnyGraph, section: str, given: TorchTensors, overrides: TorchTensors) -> dict[str, torch.Tensor]:
    """What a section's gradients are taken with respect to, by its own names: `input`, overrides, adapter matrices."""
    leaves = {tap: override for tap, override in overrides.items() if tap not in ROPE_TABLES}
    if "input" in given:
        leaves["input"] = given["input"]
    matrices, start = lora.parameters(graph), tap_names.prefix(section)
    return leaves | {path.removeprefix(start): matrices[path] for path in section_adapter(graph.plan, section)}


def _named(tensors: TorchTensors, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _gradients(outputs: Sequence[tuple[torch.Tensor, torch.Tensor | None]], leaves: TorchTensors) -> dict[str, np.ndarray]:
    """`grad.NAME` of the sum of <output, cotangent> (None is 1) with respect to each leaf; zero where no output follows from it."""
    live = [(output, bar) for output, bar in outputs if output.requires_grad]
    if not live or not leaves:
        return {f"grad.{name}": to_host(torch.zeros_like(leaf)) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(
        [output for output, _ in live], list(leaves.values()), [bar for _, bar in live], allow_unused=True, materialize_grads=True
    )
    return {f"grad.{name}": to_host(gradient) for name, gradient in zip(leaves, gradients, strict=True)}


def to_host(value: torch.Tensor) -> np.ndarray:
    """A tensor's values."""
    host = value.detach().contiguous().cpu()
    if host.dtype == torch.bfloat16:  # NumPy has none of its own
        return host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return host.numpy()
