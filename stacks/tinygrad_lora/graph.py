"""The full causal graph, one section at a time: taps, overrides, and the gradient of what cotangents ask for.

A section is one function of tensors by name (`contract.worker.graph` names them). All blocks share it, so it is captured
once (TinyJit) and replayed with each block's weights: scheduling, the larger part of a small block's time, is paid for two
blocks and not for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import numpy as np
from tinygrad import Tensor, TinyJit

from contract.model.layout import LlamaLayout
from contract.worker.plan import GraphPlan
from contract.worker.taps import HEAD
from stacks.tinygrad_lora.hook import Hook
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models import llama

Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CAPTURED = 16
"""Captured functions that are kept: each holds the buffers of its outputs."""
OVERRIDE, BAR = "override.", "bar."
_ADAPTER = (".lora_a", ".lora_b")


class Sections:
    """The sections of one plan's graph as functions of host arrays, each captured when it is first repeated.

    Args:
        device: tinygrad's name of it.
    """

    def __init__(self, plan: GraphPlan, device: str) -> None:
        self._device = device
        self._captured = lru_cache(CAPTURED)(partial(_function, plan))

    def run(
        self, section: str, held: Mapping[str, Tensor], given: Mapping[str, np.ndarray], *, wanted: Callable[[str], bool]
    ) -> dict[str, np.ndarray]:
        """What `compute` answers, on the host, where it is wanted.

        Args:
            held: the section's weights and adapter, and the graph's scalars, on the device; no two of them one buffer.
            given: everything else.
        """
        kind = section if section == HEAD else "block"
        captured = self._captured(kind, *((name, given[name].shape) for name in sorted(given)))
        tensors = {name: to_device(array, self._device) for name, array in given.items()}
        Tensor.realize(*tensors.values())
        # in one order: TinyJit tells the tensors of a dictionary apart by their places, not by their names
        inputs = dict(sorted((dict(held) | tensors).items()))
        # copied to the host at once: the next replay writes its outputs over these
        return {name: tensor.numpy() for name, tensor in captured(inputs).items() if wanted(name)}


def compute(tensors: Mapping[str, Tensor], *, plan: GraphPlan, section: str) -> dict[str, Tensor]:
    """Every tap of a section as computed, and where cotangents are given `grad.NAME`: the gradient of the sum of all <tap, bar>.

    With respect to the input, each override and each adapter matrix.

    Args:
        tensors: `input`, the section's weights, adapter and scalars; a block's `rope.cos` and `rope.sin`; what
            `stacks.tinygrad_lora.loss.next_tokens` makes of the head's labels; `override.NAME` and `bar.NAME`.
        section: `head`, or anything else for a block.
    """
    overrides = {name.removeprefix(OVERRIDE): tensor for name, tensor in tensors.items() if name.startswith(OVERRIDE)}
    hook = Hook(overrides)
    if section == HEAD:
        llama.head(tensors["input"], tensors, hook)
    else:
        llama.block(tensors["input"], tensors, _linears(tensors, plan, hook), hook, llama_layout(plan))
    bars = {name.removeprefix(BAR): tensor for name, tensor in tensors.items() if name.startswith(BAR)}
    if not bars:
        return hook.computed
    wanted = {"input": tensors["input"], **overrides} | {name: tensor for name, tensor in tensors.items() if name.endswith(_ADAPTER)}
    products = [(hook.computed[name] * bar).sum() for name, bar in bars.items()]
    gradients = products[0].usum(*products[1:]).gradient(*wanted.values())
    return hook.computed | {f"grad.{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def llama_layout(plan: GraphPlan) -> LlamaLayout:
    """The layout of a plan that ops.py has let in."""
    assert isinstance(plan.layout, LlamaLayout)
    return plan.layout


def to_device(array: np.ndarray, device: str) -> Tensor:
    """An array as a tensor with a buffer of its own, once it is realised."""
    # never of shape []: tinygrad would compile such a value into the kernel
    return Tensor(np.atleast_1d(np.ascontiguousarray(array)), device=device)


def _function(plan: GraphPlan, kind: str, *given: tuple[str, tuple[int, ...]]) -> Function:
    """A function of its own for each set of names and shapes: TinyJit replays one sequence of kernels."""
    function: Function = TinyJit(partial(compute, plan=plan, section=kind))
    return function


def _linears(tensors: Mapping[str, Tensor], plan: GraphPlan, hook: Hook) -> Linears:
    block_size = plan.base.block_size if plan.base is not None and "nf4_linear" in plan.paths else None
    return Linears(tensors=tensors, out_features=llama.out_features(llama_layout(plan)), block_size=block_size, hook=hook)
