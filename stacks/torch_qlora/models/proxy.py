"""The proxy graph qlora_proxy_v1: a token's successor from the token alone, through one linear a layer; no whole transformer.

    h_0     = the embedding's row of the token before
    h_i+1   = h_i + F_i(h_i / sqrt(mean(h_i^2) + 1e-6)) / sqrt(n)        i = 0 .. n - 1, the middle blocks in layer order
    logits  = F_head(h_n / sqrt(n)), with n = 0 F_head(h_0)
    F(x)    = W x + s B (A x)        W of a block: attention's output projection, without its bias; W of the head: the embedding

It has the interface of stacks.torch_qlora.graph.Graph. Logits of a position depend on that position's token and on nothing else of the
sequence, so a pass for training computes the rows whose successor counts, and no others.

Shape legend: B sequences, T tokens, R rows that count, D hidden_size, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from contract.worker import taps
from contract.worker.graph import IGNORE_INDEX
from contract.worker.graph import adapter as adapter_names
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, LM_HEAD, MIDDLE, PROXY_EPS
from stacks.torch_qlora import lora
from stacks.torch_qlora.adapted_loss import adapted_cross_entropy
from stacks.torch_qlora.attributes import DTYPES
from stacks.torch_qlora.loss import chunked_cross_entropy, cross_entropy
from stacks.torch_qlora.models.llama import Embedding
from stacks.torch_qlora.norm import RmsNorm
from stacks.torch_qlora.taps import Tap, Taps, tapped, under, unseen
from stacks.torch_qlora.weights import Loader, Weights, to_tensor

if TYPE_CHECKING:
    from stacks.torch_qlora.graph import GraphBatch


class Block(nn.Module):
    """A section `layers.N`: a norm and one linear, added to the residual stream.

    Args:
        divisor: sqrt(n). fused: the norm as one function.
    """

    o_proj: nn.Module

    def __init__(self, width: int, loader: Loader, section: str, divisor: float, *, fused: bool) -> None:
        super().__init__()
        self.norm = RmsNorm(loader.ones(width), PROXY_EPS)
        self.norm.fused_elementwise = fused
        self.divisor = divisor
        self.add_module(MIDDLE, loader.frozen(f"{section}.{MIDDLE}", f"{section}.{MIDDLE}"))

    def forward(self, x: torch.Tensor, tap: Tap) -> torch.Tensor:
        """x + F(norm(x)) / sqrt(n), [..., D]."""
        return tap("output", x + self.o_proj(self.norm(x)) / self.divisor)


class Proxy(nn.Module):
    """The sections of a proxy plan that are held: `embedding`, `layers`, and `lm_head` for the head.

    Args:
        weights, adapter: as of Graph.

    Raises:
        ValueError: a block size that NF4 kernels lack.
    """

    lm_head: nn.Module | None

    def __init__(self, plan: GraphPlan, weights: Weights, adapter: Mapping[str, np.ndarray], device: torch.device) -> None:
        super().__init__()
        self.plan, self.device, self._chunked = plan, device, "chunked_loss" in plan.paths
        self._divisor = math.sqrt(plan.blocks or 1)
        loader, width = Loader(plan, weights, device), plan.layout.hidden_size
        self.embedding = Embedding(loader) if EMBEDDING in plan.held else None
        blocks = [section for section in plan.held if section not in (EMBEDDING, HEAD)]
        fused = "fused_elementwise" in plan.paths
        self.layers = nn.ModuleDict(
            {section.removeprefix("layers."): Block(width, loader, section, self._divisor, fused=fused) for section in blocks}
        )
        self.lm_head = loader.frozen(LM_HEAD, "embedding") if HEAD in plan.held else None
        masters = torch.float64 if DTYPES[plan.dtype] == torch.float64 else torch.float32
        matrices = {name: to_tensor(adapter[name], masters, device) for name in adapter_names(plan)}
        lora.inject(self, plan.lora, matrices, fused="fused_lora" in plan.paths)

    def hidden(self, batch: GraphBatch, shown: Taps | None = None) -> torch.Tensor:
        """The residual stream that enters the head, [B, T, D]."""
        return self._middle(self._embed(batch.ids_BT, shown), shown)

    def loss_sum(self, batch: GraphBatch, shown: Taps | None = None) -> torch.Tensor:
        """The sum of -log softmax(logits[b, t])[labels[b, t + 1]] over the labels that count; a scalar, float32 at least.

        Where nothing is shown, the rows of other labels are not computed.
        """
        assert batch.labels_BT is not None
        if shown is not None:
            lora.select_rows(self, None)
            return self._loss_sum(self.hidden(batch, shown), batch.labels_BT, shown.under(HEAD))
        next_BT = batch.labels_BT[:, 1:]
        counts_BT = next_BT != IGNORE_INDEX
        counts_BT, next_R = nn.functional.pad(counts_BT, (0, 1)), next_BT[counts_BT]
        lora.select_rows(self, counts_BT)
        x_RD = self._middle(self._embed(batch.ids_BT[counts_BT], None), None)
        return self._loss_of_rows(x_RD / self._divisor, next_R, unseen)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """F_head(x / sqrt(n)) [..., V] of rows x [..., D] of the residual stream."""
        assert self.lm_head is not None
        logits: torch.Tensor = self.lm_head(x / self._divisor)
        return logits

    def whole(self, batch: GraphBatch, shown: Taps) -> None:
        """Every section in order, each on what the one before gave; the taps of the head, `loss` where labels are given."""
        self._run_head(self.hidden(batch, shown), batch.labels_BT, shown)

    def run_section(self, section: str, given: Mapping[str, torch.Tensor], shown: Taps) -> None:
        """One section on `input` [B, T, D] (`embedding` on `ids` [B, T]), and `head` on labels where they are given."""
        if section == EMBEDDING:
            self._embed(given["ids"], shown)
        elif section == HEAD:
            self._run_head(given["input"], given.get("labels"), shown)
        else:
            self._run_block(section, given["input"], shown)

    # Sections

    def _embed(self, ids: torch.Tensor, shown: Taps | None) -> torch.Tensor:
        """x [..., D]."""
        assert self.embedding is not None
        x: torch.Tensor = self.embedding(ids, None, under(shown, EMBEDDING))
        return x

    def _middle(self, x: torch.Tensor, shown: Taps | None) -> torch.Tensor:
        """What the blocks make of x [..., D], one after the other."""
        for section in taps.sections(self.plan.blocks)[1:-1]:
            x = self._run_block(section, x, shown)
        return x

    def _run_block(self, section: str, x: torch.Tensor, shown: Taps | None) -> torch.Tensor:
        """A block's output [..., D]; with the path `checkpoint` its activations are computed again in the backward pass."""
        block, tap = self.layers[section.removeprefix("layers.")], under(shown, section)

        def run(x: torch.Tensor) -> torch.Tensor:
            with tapped(block, tap):
                return block(x, tap)  # type: ignore[no-any-return]

        if "checkpoint" in self.plan.paths and torch.is_grad_enabled():
            return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return run(x)

    def _run_head(self, x_BTD: torch.Tensor, labels_BT: torch.Tensor | None, shown: Taps) -> None:
        tap = shown.under(HEAD)
        if labels_BT is not None:
            tap("loss", self._loss_sum(x_BTD, labels_BT, tap) / (labels_BT[:, 1:] != IGNORE_INDEX).sum())
            return
        scaled_BTD = tap("scaled", x_BTD / self._divisor)
        if not self._chunked:
            self._project(scaled_BTD, tap)

    def _loss_sum(self, x_BTD: torch.Tensor, labels_BT: torch.Tensor, tap: Tap) -> torch.Tensor:
        """The sum over a whole batch, with the taps of all of its rows."""
        scaled_BTD = tap("scaled", x_BTD / self._divisor)
        if self._chunked:
            return self._loss_of_rows(scaled_BTD[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), tap)
        logits_BTV = self._project(scaled_BTD, tap)
        rows_RV, next_R = logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
        return cross_entropy(rows_RV, next_R, reduction="sum", ignore_index=IGNORE_INDEX)

    def _loss_of_rows(self, scaled_RD: torch.Tensor, next_R: torch.Tensor, tap: Tap) -> torch.Tensor:
        """The sum over rows by themselves; in chunks, without the whole matrix of logits, where the plan has that path."""
        if self._chunked:
            assert self.lm_head is not None
            if LM_HEAD in self.plan.targets:
                return adapted_cross_entropy(scaled_RD, lora.parts(self.lm_head), next_R, ignore_index=IGNORE_INDEX)
            assert isinstance(self.lm_head, nn.Linear)  # peft's module is none
            weight_VD = lora.frozen_weight(self.lm_head, scaled_RD.dtype)
            return chunked_cross_entropy(scaled_RD, weight_VD, next_R, ignore_index=IGNORE_INDEX, reduction="sum")
        return cross_entropy(self._project(scaled_RD, tap), next_R, reduction="sum", ignore_index=IGNORE_INDEX)

    def _project(self, scaled: torch.Tensor, tap: Tap) -> torch.Tensor:
        """The logits [..., V]."""
        assert self.lm_head is not None
        with tapped(nn.ModuleDict({LM_HEAD: self.lm_head}), tap):
            logits: torch.Tensor = self.lm_head(scaled)
        return logits
