"""Cross-entropy of token logits.

Shape legend: T tokens, V vocabulary, D hidden size, R rows that count, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from stacks.torch_qlora.linear import linear

REDUCTIONS = ("mean", "sum")

CHUNK_VALUES = 2**24
"""Logits that are held at once (a row's at least): 64 MiB in float32. With fewer rows at a time a product costs more a row."""


def cross_entropy(logits_TV: torch.Tensor, labels_T: torch.Tensor, *, reduction: str, ignore_index: int) -> torch.Tensor:
    """loss = sum over supervised rows t of (logsumexp(logits[t]) - logits[t, labels[t]]), over their count where reduction is mean.

    A row is supervised unless its label is `ignore_index`. Scalar, in the logits' dtype, float32 where that is narrower; the labels are
    int64.

    Raises:
        ValueError: an unknown reduction, a label outside the vocabulary, or a mean over no row.
    """
    _supervised(labels_T, vocabulary=logits_TV.shape[1], reduction=reduction, ignore_index=ignore_index)
    logits_TV = wide(logits_TV)
    return torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction=reduction, ignore_index=ignore_index)


def chunked_cross_entropy(
    x_TD: torch.Tensor, head_VD: torch.Tensor, labels_T: torch.Tensor, *, ignore_index: int, reduction: str = "mean"
) -> torch.Tensor:
    """`cross_entropy` of logits = x head^T with a frozen head, without the [T, V] matrix of logits, and of the rows that count alone.

    The logits of a chunk of rows are made once. Their gradient, softmax - onehot, goes through the head there and then, so that [R, D]
    of it are kept for the backward pass, and no logits. Scalar, in x's dtype, float32 where that is narrower.

    Raises:
        ValueError: as `cross_entropy`.
    """
    supervised_T = _supervised(labels_T, vocabulary=head_VD.shape[0], reduction=reduction, ignore_index=ignore_index)
    rows_R = supervised_T.nonzero()[:, 0]
    total = _projected(x_TD, head_VD, labels_T[rows_R], rows_R)
    return total / len(rows_R) if reduction == "mean" else total


class _ProjectedLoss(torch.autograd.Function):
    """sum over r of (logsumexp(l[r]) - l[r, labels[r]]), l = x[rows] head^T; differentiable in x, once."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, head_VD: torch.Tensor, labels_R: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
        """The sum; with it, where it is wanted, the gradient of the rows."""
        size = max(1, CHUNK_VALUES // head_VD.shape[0])
        gradient_RD = x_TD.new_empty(len(rows_R), x_TD.shape[1]) if ctx.needs_input_grad[0] else None
        sums = []
        for start in range(0, len(rows_R), size):
            part = slice(start, start + size)
            logits_CV = linear(x_TD[rows_R[part]], head_VD)
            loss, gradient_CV = loss_and_gradient(wide(logits_CV), labels_R[part])
            sums.append(loss)
            if gradient_RD is not None:
                torch.matmul(gradient_CV.to(head_VD.dtype), head_VD, out=gradient_RD[part])
            del logits_CV, gradient_CV  # before the next chunk's
        ctx.tokens = len(x_TD)
        ctx.save_for_backward(rows_R, gradient_RD)
        return torch.stack(sums).sum() if sums else wide(x_TD).new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """bar (softmax - onehot) head in the rows that count, 0 in the others."""
        rows_R, gradient_RD = ctx.saved_tensors
        bar_TD = gradient_RD.new_zeros(ctx.tokens, gradient_RD.shape[1])
        bar_TD[rows_R] = (gradient_RD * bar).to(gradient_RD.dtype)
        return bar_TD, None, None, None


_projected: Callable[..., torch.Tensor] = _ProjectedLoss.apply


def loss_and_gradient(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of a chunk's losses, and softmax - onehot [C, V] in the logits' own memory."""
    rows_C = torch.arange(len(labels_C), device=labels_C.device)
    logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
    picked_C = logits_CV[rows_C, labels_C]
    sums_C1 = logits_CV.exp_().sum(dim=1, keepdim=True)
    loss = (sums_C1[:, 0].log() - picked_C).sum()
    gradient_CV = logits_CV.div_(sums_C1)
    gradient_CV[rows_C, labels_C] -= 1
    return loss, gradient_CV


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 where the dtype is narrower: the loss is never computed in bfloat16."""
    return x.float() if x.dtype.itemsize < torch.float32.itemsize else x


def _supervised(labels_T: torch.Tensor, *, vocabulary: int, reduction: str, ignore_index: int) -> torch.Tensor:
    """Which rows count, [T] bool; CUDA's kernel stops the whole process on a label outside the vocabulary, so it is looked for first.

    Raises:
        ValueError: an unknown reduction, a label outside the vocabulary, or a mean over no row.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction is {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    supervised_T = labels_T != ignore_index
    outside_T = supervised_T & ((labels_T < 0) | (labels_T >= vocabulary))
    if bool(outside_T.any()):
        row = int(outside_T.nonzero()[0])
        raise ValueError(
            f"cross_entropy: labels[{row}] is {int(labels_T[row])}; allowed are 0 to {vocabulary - 1} (the logits have {vocabulary} "
            f"columns) and ignore_index ({ignore_index}); mask the row with ignore_index or correct its label"
        )
    if reduction == "mean" and not bool(supervised_T.any()):
        raise ValueError(
            f"cross_entropy: all {labels_T.numel()} labels are ignore_index ({ignore_index}), and a mean over no row is 0 / 0; "
            "give at least one supervised row, or reduction = 'sum'"
        )
    return supervised_T
