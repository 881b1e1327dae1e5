"""What the sections of every architecture share: what a pass knows of its tokens, and the head.

Shape legend: B sequences, T tokens, R rows of tokens, D hidden_size, V vocab_size, E head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from contract.worker.graph import IGNORE_INDEX
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.linear import linear
from stacks.torch_qlora.loss import chunked_cross_entropy, cross_entropy
from stacks.torch_qlora.taps import Tap, unseen
from stacks.torch_qlora.visible import Visible


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What all blocks of one pass take beside the residual stream.

    rope: cos and sin, [T, E] or [B, 1, T, E]; None in an architecture without RoPE. cache: what holds the keys and values of earlier
    passes; None: there were none.
    """

    visible: Visible
    rope: tuple[torch.Tensor, torch.Tensor] | None = None
    cache: KeyValueCache | None = None


class Head(nn.Module):
    """The section `head`: the last norm, the logits, and the loss of each token's successor.

    Args:
        weight_VD: the projection; the embedding's own parameter where they are tied.
        chunked: the loss in chunks of rows, without the whole matrix of logits.
    """

    def __init__(self, final_norm: nn.Module, weight_VD: nn.Parameter, *, chunked: bool) -> None:
        super().__init__()
        self.final_norm = final_norm
        self.weight, self.chunked = weight_VD, chunked

    def forward(self, x_BTD: torch.Tensor, labels_BT: torch.Tensor | None, tap: Tap) -> None:
        """Shows logits = norm(x) weight^T; where labels are given, loss = mean of -log softmax(logits[b, t])[labels[b, t + 1]]."""
        if labels_BT is not None:
            tap("loss", self.loss_sum(x_BTD, labels_BT, tap) / (labels_BT[:, 1:] != IGNORE_INDEX).sum())
        elif self.chunked:
            self.final_norm(x_BTD)
        else:
            tap("logits", self.logits(x_BTD))

    def loss_sum(self, x_BTD: torch.Tensor, labels_BT: torch.Tensor, tap: Tap) -> torch.Tensor:
        """The sum, where `forward` shows the mean, over the labels that count; a scalar, float32 at least."""
        if self.chunked:
            rows_RD, next_R = self._rows(x_BTD, labels_BT[:, 1:], every=tap is not unseen)
            return chunked_cross_entropy(rows_RD, self.weight, next_R, ignore_index=IGNORE_INDEX, reduction="sum")
        logits_BTV = tap("logits", self.logits(x_BTD))
        rows_RV, next_R = logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
        return cross_entropy(rows_RV, next_R, reduction="sum", ignore_index=IGNORE_INDEX)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[..., V] of rows x [..., D] of the residual stream."""
        return linear(self.final_norm(x), self.weight)

    def _rows(self, x_BTD: torch.Tensor, next_BT: torch.Tensor, *, every: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Normed rows and the token after each; every: those without a label too, so that the whole norm can be shown."""
        if every:
            normed_BTD: torch.Tensor = self.final_norm(x_BTD)
            return normed_BTD[:, :-1].flatten(0, 1), next_BT.flatten()
        counts_BT = next_BT != IGNORE_INDEX
        return self.final_norm(x_BTD[:, :-1][counts_BT]), next_BT[counts_BT]
