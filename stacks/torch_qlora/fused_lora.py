"""A frozen linear with LoRA as one operation of autograd: three products fewer passes over memory than peft's own forward.

Legend: L any leading dimensions (sequences, tokens), N their product, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

Weight = Callable[[], torch.Tensor]
"""Gives the frozen weight [O, I] in the dtype of the product; asked for in the forward and in the backward pass."""


def fused_lora(
    x_LI: torch.Tensor,
    lora_a_RI: torch.Tensor,
    lora_b_OR: torch.Tensor,
    bias_O: torch.Tensor | None,
    *,
    weight: Weight,
    scale: float,
    keep: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """y = x weight^T + bias + (scale dropout(x) A^T) B^T, [L, O] in x's dtype; differentiable in x, A and B, once.

    As peft's module computes it, but that s multiplies [N, R] and not [N, O], and that the second product adds to the first in place:
    of [N, O] there is one copy instead of four. A and B are cast to x's dtype in the product, and their gradients come in their own.
    Kept for the backward pass are x, its mask, and s A x.
    """
    return _apply(x_LI, lora_a_RI, lora_b_OR, bias_O, weight, scale, keep, dropout)


def dropped(x: torch.Tensor, keep: torch.Tensor, dropout: float) -> torch.Tensor:
    """x keep / (1 - dropout), exactly 0 where `keep` is False."""
    return x.masked_fill(~keep, 0.0) / (1 - dropout)


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_LI: torch.Tensor,
        lora_a_RI: torch.Tensor,
        lora_b_OR: torch.Tensor,
        bias_O: torch.Tensor | None,
        weight: Weight,
        scale: float,
        keep_LI: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        """y [L, O]."""
        x_NI = x_LI.flatten(0, -2)
        y_NO = torch.nn.functional.linear(x_NI, weight(), bias_O)
        kept_NI = x_NI if keep_LI is None else dropped(x_NI, keep_LI.view(x_NI.shape), dropout)
        ax_NR = torch.matmul(kept_NI, lora_a_RI.to(x_LI.dtype).T).mul_(scale)
        y_NO.addmm_(ax_NR, lora_b_OR.to(x_LI.dtype).T)
        ctx.save_for_backward(x_LI, lora_a_RI, lora_b_OR, ax_NR, keep_LI)
        ctx.weight, ctx.scale, ctx.dropout = weight, scale, dropout
        return y_NO.view(*x_LI.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar_LO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of x: bar W + (s bar B) A; of A: (s bar B)^T x; of B: bar^T (s A x); where the mask drops, x and its share are 0."""
        x_LI, lora_a_RI, lora_b_OR, ax_NR, keep_LI = ctx.saved_tensors
        x_NI, bar_NO = x_LI.flatten(0, -2), bar_LO.flatten(0, -2)
        keep_NI = None if keep_LI is None else keep_LI.view(x_NI.shape)
        kept_NI = x_NI if keep_NI is None else dropped(x_NI, keep_NI, ctx.dropout)
        bar_ax_NR = torch.matmul(bar_NO, lora_b_OR.to(x_LI.dtype)).mul_(ctx.scale)
        bar_a_RI = torch.matmul(bar_ax_NR.T, kept_NI).to(lora_a_RI.dtype) if ctx.needs_input_grad[1] else None
        bar_b_OR = torch.matmul(bar_NO.T, ax_NR).to(lora_b_OR.dtype) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, bar_a_RI, bar_b_OR, None, None, None, None, None
        bar_x_NI = torch.matmul(bar_NO, ctx.weight())
        lora_a_RI = lora_a_RI.to(x_LI.dtype)
        if keep_NI is None:
            bar_x_NI.addmm_(bar_ax_NR, lora_a_RI)
        else:
            bar_x_NI.add_(dropped(torch.matmul(bar_ax_NR, lora_a_RI), keep_NI, ctx.dropout))
        return bar_x_NI.view(x_LI.shape), bar_a_RI, bar_b_OR, None, None, None, None, None


_apply: Callable[..., torch.Tensor] = _FusedLora.apply
