"""A plan's graph, one section at a time: taps, overrides, and the gradient of what cotangents ask for.

A section is one function of tensors by name (`contract.worker.graph` names them). All blocks share it, so it is captured
once (TinyJit) and replayed with each block's weights: scheduling, the larger part of a small block's time, is paid for two
blocks and not for each. What differs between blocks (weights, windows, scalings) comes as tensors; where shapes differ, as with other
ranks, it is another function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import numpy as np
from tinygrad import Tensor, TinyJit

from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD
from stacks.tinygrad_lora.hook import Hook
from stacks.tinygrad_lora.host import to_device, to_host, write
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.models.section import Model, Pass
from stacks.tinygrad_lora.widen import wide

Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CAPTURED = 16
"""Captured functions that are kept: each holds the buffers of its outputs."""
KEPT = 8
"""Graphs whose functions are kept when another one is opened: questions of one case ask for several plans in turn."""
LARGEST = 2**24
"""Bytes of weights over which none are kept: such kernels take longer than their scheduling, and much memory."""
OVERRIDE, BAR, SEEN = "override.", "bar.", "seen"
_ADAPTER = (".lora_a", ".lora_b")


class Sections:
    """The sections of one plan's graph as functions of host arrays, each captured when it is first repeated.

    Args:
        device: tinygrad's name of it.
    """

    def __init__(self, plan: GraphPlan, device: str) -> None:
        self._captured = lru_cache(CAPTURED)(partial(_Captured, plan, build(plan), device))

    def run(
        self, section: str, held: Mapping[str, Tensor], given: Mapping[str, np.ndarray], *, wanted: Callable[[str], bool]
    ) -> dict[str, np.ndarray]:
        """What `compute` answers, on the host, where it is wanted.

        Args:
            held: the section's weights and adapter, and the graph's scalars, on the device; no two of them one buffer.
            given: everything else.
        """
        kind = section if section in (EMBEDDING, HEAD) else "block"
        shapes = {name: tensor.shape for name, tensor in held.items()} | {name: array.shape for name, array in given.items()}
        computed = self._captured(kind, *sorted(shapes.items()))(held, given)
        # copied to the host at once: the next replay writes its outputs over these
        return {name: to_host(tensor) for name, tensor in computed.items() if wanted(name)}


def sections_of(plan: GraphPlan, device: str, *, weights: int) -> Sections:
    """A plan's sections, those of the last graph of the same plan where it is small: its weights and adapter come with each call.

    Args:
        weights: how many bytes they are.
    """
    return _kept(plan.model_dump_json(), device) if weights <= LARGEST else Sections(plan, device)


@lru_cache(KEPT)
def _kept(plan: str, device: str) -> Sections:
    return Sections(GraphPlan.model_validate_json(plan), device)


def compute(tensors: Mapping[str, Tensor], *, plan: GraphPlan, model: Model, section: str) -> dict[str, Tensor]:
    """Every tap of a section as computed, and where cotangents are given `grad.NAME`: the gradient of the sum of all <tap, bar>.

    With respect to the input, each override and each adapter matrix.

    Args:
        tensors: `input`, or what `Model.embed` takes; the section's weights, adapter and scalars; a block's `seen`, and with RoPE
            `rope.cos` and `rope.sin`; what `stacks.tinygrad_lora.loss.next_tokens` makes of the head's labels; `override.NAME` and
            `bar.NAME`.
        section: `embedding`, `head`, or anything else for a block.
    """
    overrides = {name.removeprefix(OVERRIDE): tensor for name, tensor in tensors.items() if name.startswith(OVERRIDE)}
    hook = Hook(overrides)
    if section == EMBEDDING:
        model.embed(tensors, hook)
    elif section == HEAD:
        model.head(tensors["input"], tensors, _linears(tensors, plan, model, hook), hook)
    else:
        shared = Pass(seen=lambda layer: tensors[SEEN], cos=tensors.get("rope.cos"), sin=tensors.get("rope.sin"))
        model.block(tensors["input"], tensors, _linears(tensors, plan, model, hook), hook, 0, shared)
    bars = {name.removeprefix(BAR): tensor for name, tensor in tensors.items() if name.startswith(BAR)}
    if not bars:
        return hook.computed
    wanted = {name: tensor for name, tensor in tensors.items() if name == "input" or name.endswith(_ADAPTER)} | overrides
    products = [(wide(hook.computed[name]) * wide(bar)).sum() for name, bar in bars.items()]
    gradients = products[0].usum(*products[1:]).gradient(*wanted.values()) if wanted else []
    return hook.computed | {f"grad.{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


class _Captured:
    """A function of its own for each set of names and shapes: TinyJit replays one sequence of kernels."""

    def __init__(self, plan: GraphPlan, model: Model, device: str, kind: str, *shapes: tuple[str, tuple[int, ...]]) -> None:
        function: Function = partial(compute, plan=plan, model=model, section=kind)
        # rows that pass as they are make no kernel, and TinyJit refuses to capture none
        self._function = function if kind == EMBEDDING else TinyJit(function)
        self._device = device
        self._given: dict[str, Tensor] = {}

    def __call__(self, held: Mapping[str, Tensor], given: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        if self._given:
            for name, array in given.items():
                write(self._given[name], array)
        else:
            self._given = {name: to_device(array, self._device) for name, array in given.items()}
        # in one order: TinyJit tells the tensors of a dictionary apart by their places, not by their names
        return self._function(dict(sorted((dict(held) | self._given).items())))


def _linears(tensors: Mapping[str, Tensor], plan: GraphPlan, model: Model, hook: Hook) -> Linears:
    block_size = plan.base.block_size if plan.base is not None and "nf4_linear" in plan.paths else None
    return Linears(tensors=tensors, out_features=model.out_features, block_size=block_size, hook=hook)
