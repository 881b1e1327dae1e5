"""The full causal graph over an architecture's sections: for training and generation, and with every inner value to see and to override.

Shape legend: B sequences, T tokens, D hidden_size, V vocab_size, E head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from contract.model.layout import RopeLayout
from contract.worker import taps
from contract.worker.graph import adapter as adapter_names
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD
from stacks.torch_qlora import lora, rope
from stacks.torch_qlora.attributes import DTYPES
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.models import build, llama
from stacks.torch_qlora.models.proxy import Proxy
from stacks.torch_qlora.models.section import Head, Pass
from stacks.torch_qlora.norm import RmsNorm
from stacks.torch_qlora.taps import Taps, tapped, under
from stacks.torch_qlora.visible import Visible
from stacks.torch_qlora.weights import Loader, Weights, to_tensor


@dataclass(frozen=True, kw_only=True)
class GraphBatch:
    """What a pass takes, int64 [B, T] each, on the graph's device; as contract/data/batches.py has them.

    positions_BT: None: 0 .. T - 1. segments_BT: PADDING (-1) for padding; None: one segment without padding, which is faster.
    A token sees those of its own segment up to itself, within its layer's window; padding sees nothing.
    """

    ids_BT: torch.Tensor
    labels_BT: torch.Tensor | None = None
    positions_BT: torch.Tensor | None = None
    segments_BT: torch.Tensor | None = None


class Graph(nn.Module):
    """The sections of a plan that are held: `embedding`, `layers`, `head`; its modules' paths are the contract's names.

    Args:
        weights: the base weights that the plan needs, by name, asked for one after the other.
        adapter: PATH.lora_a and PATH.lora_b, float32. They become the parameters: float64 in a float64 graph, else float32.

    Raises:
        ValueError: a block size that NF4 kernels lack.
    """

    def __init__(self, plan: GraphPlan, weights: Weights, adapter: Mapping[str, np.ndarray], device: torch.device) -> None:
        super().__init__()
        self.plan, self.device, self._dtype = plan, device, DTYPES[plan.dtype]
        self._rope_rows: tuple[torch.Tensor, torch.Tensor] | None = None
        loader, layout, fused = Loader(plan, weights, device), plan.layout, "fused_attention" in plan.paths
        self.embedding = build.embedding(layout, loader) if EMBEDDING in plan.held else None
        numbers = [section.removeprefix("layers.") for section in plan.held if section not in (EMBEDDING, HEAD)]
        self.layers = nn.ModuleDict({number: build.block(layout, loader, int(number), fused=fused) for number in numbers})
        self.head: Head | None = None
        if HEAD in plan.held:
            tied = layout.tie_word_embeddings
            weight = self.embedding.weight if tied and self.embedding else loader.tensor("embedding" if tied else "lm_head")
            self.head = Head(build.final_norm(layout, loader), weight, chunked="chunked_loss" in plan.paths)
        if "fused_elementwise" in plan.paths:
            for module in self.modules():
                if isinstance(module, RmsNorm | llama.Block):
                    module.fused_elementwise = True
        masters = torch.float64 if plan.dtype == "float64" else torch.float32
        matrices = {name: to_tensor(adapter[name], masters, device) for name in adapter_names(plan)}
        lora.inject(self, plan.lora, matrices, fused="fused_lora" in plan.paths)

    # Training and generation

    def hidden(self, batch: GraphBatch, shown: Taps | None = None, cache: KeyValueCache | None = None) -> torch.Tensor:
        """The residual stream that enters the head, [B, T, D].

        Args:
            cache: holds the keys and values of earlier passes, and then those of this one too. Positions are the new tokens' own then;
                None: they follow on what the cache holds.
        """
        tokens, positions_BT, segments_BT = batch.ids_BT.shape[1], batch.positions_BT, batch.segments_BT
        if cache is not None and positions_BT is None:
            positions_BT = (cache.length + torch.arange(tokens, device=self.device)).expand(batch.ids_BT.shape)
        keys = cache.place(positions_BT, segments_BT) if cache is not None and positions_BT is not None else None
        visible = Visible(tokens, self.device, segments_BT=segments_BT, positions_BT=positions_BT, keys=keys)
        shared = Pass(visible=visible, rope=self._rope(tokens, positions_BT, shown), cache=cache)
        x_BTD = self._embed(batch.ids_BT, positions_BT, shown)
        for section in taps.sections(self.plan.blocks)[1:-1]:
            x_BTD = self._run_block(section, x_BTD, shared, shown)
        return x_BTD

    def loss_sum(self, batch: GraphBatch, shown: Taps | None = None) -> torch.Tensor:
        """The sum of -log softmax(logits[b, t])[labels[b, t + 1]] over the labels that count; a scalar, float32 at least.

        With the path `chunked_loss`, rows whose label does not count are never projected.
        """
        assert batch.labels_BT is not None
        assert self.head is not None
        x_BTD, tap = self.hidden(batch, shown), under(shown, HEAD)
        with tapped(self.head, tap):
            return self.head.loss_sum(x_BTD, batch.labels_BT, tap)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """norm and projection of rows x [..., D] of the residual stream: [..., V]."""
        assert self.head is not None
        return self.head.logits(x)

    # The protocol

    def whole(self, batch: GraphBatch, shown: Taps) -> None:
        """Every section in order, each on what the one before gave; the taps of the head, `loss` where labels are given."""
        assert self.head is not None
        x_BTD, tap = self.hidden(batch, shown), shown.under(HEAD)
        with tapped(self.head, tap):
            self.head(x_BTD, batch.labels_BT, tap)

    def run_section(self, section: str, given: Mapping[str, torch.Tensor], shown: Taps) -> None:
        """One section on `input` [B, T, D] (`embedding` on `ids` [B, T]), and labels, positions and segments where they are given."""
        positions_BT, segments_BT = given.get("positions"), given.get("segments")
        if section == EMBEDDING:
            self._embed(given["ids"], positions_BT, shown)
            self._rope(given["ids"].shape[1], positions_BT, shown)
        elif section == HEAD:
            assert self.head is not None
            tap = shown.under(HEAD)
            with tapped(self.head, tap):
                self.head(given["input"], given.get("labels"), tap)
        else:
            tokens = given["input"].shape[1]
            visible = Visible(tokens, self.device, segments_BT=segments_BT)
            shared = Pass(visible=visible, rope=self._rope(tokens, positions_BT, shown))
            self._run_block(section, given["input"], shared, shown)

    # Sections

    def _embed(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor | None, shown: Taps | None) -> torch.Tensor:
        """x [B, T, D]."""
        assert self.embedding is not None
        x_BTD: torch.Tensor = self.embedding(ids_BT, positions_BT, under(shown, EMBEDDING))
        return x_BTD

    def _rope(self, tokens: int, positions_BT: torch.Tensor | None, shown: Taps | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """cos and sin, [T, E] or [B, 1, T, E], or what overrides them; None without RoPE."""
        if not isinstance(self.plan.layout, RopeLayout):
            return None
        if positions_BT is None:
            cos, sin = (rows_PE[:tokens] for rows_PE in self._rope_table(tokens))
        else:
            cos, sin = (rows_PE[positions_BT] for rows_PE in self._rope_table(int(positions_BT.max()) + 1))
        tap = under(shown, EMBEDDING)
        cos, sin = tap("rope.cos", cos), tap("rope.sin", sin)
        return (cos, sin) if cos.ndim == 2 else (cos.unsqueeze(1), sin.unsqueeze(1))

    def _rope_table(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of positions 0, 1, ..., [P, E], of so many positions at least; made once, and again where more are asked for."""
        layout = self.plan.layout
        assert isinstance(layout, RopeLayout)
        if self._rope_rows is None or len(self._rope_rows[0]) < positions:
            frequencies_I = rope.frequencies(layout.head_dim, layout.rope_theta, layout.rope_scaling)
            rows_P = torch.arange(max(positions, 2 * len(self._rope_rows[0]) if self._rope_rows else 0))
            self._rope_rows = rope.tables(rows_P, frequencies_I, dtype=self._dtype, device=self.device)
        return self._rope_rows

    def _run_block(self, section: str, x_BTD: torch.Tensor, shared: Pass, shown: Taps | None) -> torch.Tensor:
        """A block's output [B, T, D]; with the path `checkpoint` its activations are computed again in the backward pass."""
        block, tap = self.layers[section.removeprefix("layers.")], under(shown, section)

        def run(x_BTD: torch.Tensor) -> torch.Tensor:
            with tapped(block, tap):
                y_BTD: torch.Tensor = block(x_BTD, shared, tap)
            return y_BTD

        if "checkpoint" not in self.plan.paths or not torch.is_grad_enabled():
            return run(x_BTD)
        y_BTD: torch.Tensor = checkpoint(run, x_BTD, use_reentrant=False, preserve_rng_state=False)
        return y_BTD


AnyGraph = Graph | Proxy
"""Both have loss_sum, logits, hidden, whole and run_section."""


def open_graph(plan: GraphPlan, weights: Weights, adapter: Mapping[str, np.ndarray], device: torch.device) -> AnyGraph:
    """The graph that a plan names; arguments and errors as of Graph."""
    return (Graph if plan.graph == "full_causal" else Proxy)(plan, weights, adapter, device)
