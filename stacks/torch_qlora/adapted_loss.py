"""Cross-entropy through a projection that has LoRA, without the matrix of logits.

Shape legend: T rows, N rows that count, C rows of a chunk, D hidden size, V vocabulary, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from stacks.torch_qlora.fused_lora import dropped
from stacks.torch_qlora.linear import linear
from stacks.torch_qlora.lora import Parts
from stacks.torch_qlora.loss import CHUNK_VALUES, loss_and_gradient, wide


def adapted_cross_entropy(x_TD: torch.Tensor, head: Parts, labels_T: torch.Tensor, *, ignore_index: int) -> torch.Tensor:
    """sum over the rows t that count of (logsumexp(l[t]) - l[t, labels[t]]), l = x W^T + (s dropout(x) A^T) B^T.

    A row counts unless its label is `ignore_index`. The logits of a chunk of rows are made once; their gradient G = softmax - onehot gives
    there and then what is kept for the backward pass: [N, D] of x, and as much as A and B have. Scalar, in x's dtype, float32 where that
    is narrower; differentiable in x, A and B, once. A and B are cast to x's dtype in the product, and their gradients come in their own.
    """
    rows_N = (labels_T != ignore_index).nonzero()[:, 0]
    keep_ND = None if head.keep is None else head.keep.reshape(x_TD.shape)[rows_N]
    return _apply(x_TD[rows_N], head.lora_a_RI, head.lora_b_OR, labels_T[rows_N], head, keep_ND)


class _AdaptedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: torch.Tensor,
        lora_a_RD: torch.Tensor,
        lora_b_VR: torch.Tensor,
        labels_N: torch.Tensor,
        head: Parts,
        keep_ND: torch.Tensor | None,
    ) -> torch.Tensor:
        """The sum; with it, where it is wanted, its gradients."""
        weight_VD, a_RD, b_VR = head.weight(x_ND.dtype), lora_a_RD.to(x_ND.dtype), lora_b_VR.to(x_ND.dtype)
        kept_ND = x_ND if keep_ND is None else dropped(x_ND, keep_ND, head.dropout)
        ax_NR = linear(kept_ND, a_RD).mul_(head.scale)
        total, size = wide(x_ND).new_zeros(()), max(1, CHUNK_VALUES // len(weight_VD))
        wanted = any(ctx.needs_input_grad)
        bar_x_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[0] else None
        bar_ax_NR, bar_b_VR = torch.empty_like(ax_NR), torch.zeros_like(lora_b_VR)
        for start in range(0, len(x_ND), size):
            part = slice(start, start + size)
            logits_CV = linear(x_ND[part], weight_VD).addmm_(ax_NR[part], b_VR.T)
            loss, gradient_CV = loss_and_gradient(wide(logits_CV), labels_N[part])
            total += loss
            if wanted:
                gradient_CV = gradient_CV.to(x_ND.dtype)
                if bar_x_ND is not None:
                    torch.matmul(gradient_CV, weight_VD, out=bar_x_ND[part])
                torch.matmul(gradient_CV, b_VR, out=bar_ax_NR[part])
                bar_b_VR += torch.matmul(gradient_CV.T, ax_NR[part])
            del logits_CV, gradient_CV  # before the next chunk's
        if wanted:
            bar_ax_NR.mul_(head.scale)
            if bar_x_ND is not None:
                bar_kept_ND = torch.matmul(bar_ax_NR, a_RD)
                bar_x_ND += bar_kept_ND if keep_ND is None else dropped(bar_kept_ND, keep_ND, head.dropout)
            bar_a_RD = torch.matmul(bar_ax_NR.T, kept_ND).to(lora_a_RD.dtype)
            ctx.save_for_backward(bar_x_ND, bar_a_RD, bar_b_VR)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """bar times each gradient."""
        own = (None if gradient is None else (gradient * bar).to(gradient.dtype) for gradient in ctx.saved_tensors)
        return (*own, None, None, None)


_apply: Callable[..., torch.Tensor] = _AdaptedLoss.apply
