"""The full causal graph over an architecture's sections, with every inner value to see and to override.

Shape legend: B sequences, T tokens, D hidden_size, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from contract.worker import taps
from contract.worker.graph import adapter
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD
from stacks.torch_qlora import lora, rope
from stacks.torch_qlora.attributes import DTYPES
from stacks.torch_qlora.linear import FrozenLinear
from stacks.torch_qlora.models import llama
from stacks.torch_qlora.models.llama import Tap
from stacks.torch_qlora.nf4_linear import Linear4bit


class Taps:
    """Records what a graph computes, and puts overrides in its place.

    Args:
        keep: full names of the taps to record.
        attached: those of them that stay part of autograd's graph, to be differentiated.
        overrides: by full name, what takes a tap's place for all that follows from it.
    """

    def __init__(self, *, keep: Container[str], attached: Container[str] = (), overrides: Mapping[str, torch.Tensor] | None = None) -> None:
        self.recorded: dict[str, torch.Tensor] = {}
        self._keep, self._attached, self._overrides = keep, attached, overrides or {}

    def tap(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Records the value as computed; the override in its place, if there is one."""
        if name in self._keep:
            # A checkpointed block computes its taps a second time in the backward pass: the first time counts.
            self.recorded.setdefault(name, value if name in self._attached else value.detach())
        return self._overrides.get(name, value)

    def under(self, section: str) -> Tap:
        """`tap` for a section's own names."""
        prefix = taps.prefix(section)
        return lambda name, value: self.tap(prefix + name, value)


class Loader:
    """The weights of a plan, one at a time: widened exactly to its dtype, or quantised from float32; then on the device."""

    def __init__(self, plan: GraphPlan, tensors: Mapping[str, np.ndarray], device: torch.device) -> None:
        self._plan, self._tensors, self._device = plan, tensors, device

    def widened(self, name: str, dtype: str) -> torch.Tensor:
        """A copy of its own, since what arrived may be read-only, and may be bfloat16, which torch can't take from NumPy."""
        return torch.from_numpy(np.array(self._tensors[name], dtype=dtype, order="C")).to(self._device)

    def tensor(self, name: str) -> nn.Parameter:
        """A frozen weight in the plan's dtype."""
        return nn.Parameter(self.widened(name, self._plan.dtype), requires_grad=False)

    def linear(self, name: str) -> nn.Module:
        """A frozen linear: plain, NF4, or plain with the values that NF4 keeps of its weight."""
        bias_O = self.widened(f"{name}.bias", self._plan.dtype) if f"{name}.bias" in self._tensors else None
        if self._plan.base is None:
            return FrozenLinear(self.widened(name, self._plan.dtype), bias_O)
        base = self._plan.base
        given_offset = self.widened(f"{name}.offset", "float32") if base.offsets_given else None
        quantized = Linear4bit(
            self.widened(name, "float32"), bias_O, block_size=base.block_size, double_quant=base.double_quant, given_offset=given_offset
        )
        if "nf4_linear" in self._plan.paths:
            return quantized
        return FrozenLinear(quantized.dequantized().to(DTYPES[self._plan.dtype]), bias_O)


class Graph(nn.Module):
    """The sections of a plan that are held: `embedding`, `layers`, `head`; its modules' paths are the contract's names.

    Raises:
        ValueError: a block size that NF4 kernels lack.
    """

    def __init__(self, plan: GraphPlan, tensors: Mapping[str, np.ndarray], device: torch.device) -> None:
        super().__init__()
        self.plan, self.device = plan, device
        loader, layout = Loader(plan, tensors, device), plan.layout
        self.embedding = llama.Embedding(layout, loader) if EMBEDDING in plan.held else None
        blocks = [section for section in plan.held if section not in (EMBEDDING, HEAD)]
        self.layers = nn.ModuleDict({section.removeprefix("layers."): llama.Block(layout, loader, section) for section in blocks})
        self.head: llama.Head | None = None
        if HEAD in plan.held:
            tied = layout.tie_word_embeddings
            weight = self.embedding.weight if tied and self.embedding else loader.tensor("embedding" if tied else "lm_head")
            self.head = llama.Head(layout, loader, weight, chunked="chunked_loss" in plan.paths)
        lora.inject(self, plan.lora, {name: loader.widened(name, plan.dtype) for name in adapter(plan)})

    def full_causal(self, ids_BT: torch.Tensor, labels_BT: torch.Tensor | None, shown: Taps) -> None:
        """Every section in order, each on what the one before gave."""
        x_BTD = self._embed(ids_BT, shown)
        tables_TE = self._rope_tables(ids_BT.shape[1], shown)
        for section in taps.sections(self.plan.layout.num_hidden_layers)[1:-1]:
            x_BTD = self._run_block(section, x_BTD, tables_TE, shown)
        self._run_head(x_BTD, labels_BT, shown)

    def run_section(self, section: str, given: Mapping[str, torch.Tensor], shown: Taps) -> None:
        """One section on `input` [B, T, D]; `embedding` on `ids` [B, T], `head` on `labels` [B, T] too where they are given."""
        if section == EMBEDDING:
            self._embed(given["ids"], shown)
            self._rope_tables(given["ids"].shape[1], shown)
        elif section == HEAD:
            self._run_head(given["input"], given.get("labels"), shown)
        else:
            self._run_block(section, given["input"], self._rope_tables(given["input"].shape[1], shown), shown)

    def _embed(self, ids_BT: torch.Tensor, shown: Taps) -> torch.Tensor:
        """x [B, T, D]."""
        assert self.embedding is not None
        return self.embedding(ids_BT, shown.under(EMBEDDING))  # type: ignore[no-any-return]

    def _rope_tables(self, tokens: int, shown: Taps) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, E], or what overrides them."""
        layout, dtype = self.plan.layout, DTYPES[self.plan.dtype]
        frequencies_I = rope.frequencies(layout.head_dim, layout.rope_theta, layout.rope_scaling)
        cos_TE, sin_TE = rope.tables(torch.arange(tokens), frequencies_I, dtype=dtype, device=self.device)
        tap = shown.under(EMBEDDING)
        return tap("rope.cos", cos_TE), tap("rope.sin", sin_TE)

    def _run_block(self, section: str, x_BTD: torch.Tensor, tables_TE: tuple[torch.Tensor, torch.Tensor], shown: Taps) -> torch.Tensor:
        """A block's output [B, T, D]; with the path `checkpoint` its activations are computed again in the backward pass."""
        block, tap = self.layers[section.removeprefix("layers.")], shown.under(section)

        def run(x_BTD: torch.Tensor) -> torch.Tensor:
            with _tapped(block, tap):
                return block(x_BTD, *tables_TE, tap)  # type: ignore[no-any-return]

        if "checkpoint" in self.plan.paths:
            return checkpoint(run, x_BTD, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return run(x_BTD)

    def _run_head(self, x_BTD: torch.Tensor, labels_BT: torch.Tensor | None, shown: Taps) -> None:
        """The taps of the head; `loss` where labels are given."""
        assert self.head is not None
        tap = shown.under(HEAD)
        with _tapped(self.head, tap):
            self.head(x_BTD, labels_BT, tap)


@contextmanager
def _tapped(section: nn.Module, tap: Tap) -> Iterator[None]:
    """For one pass, shows what each submodule of a section computes, peft's inner ones too, and lets `tap` replace it."""

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        return lambda _module, _inputs, output: tap(name, output)

    places = {tap_name: place for name, module in section.named_children() for tap_name, place in lora.places(name, module).items()}
    handles = [place.register_forward_hook(hook(tap_name)) for tap_name, place in places.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
