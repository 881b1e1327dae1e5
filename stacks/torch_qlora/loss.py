"""Cross-entropy of token logits.

Shape legend: T tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math

import torch
from torch.utils.checkpoint import checkpoint

from stacks.torch_qlora.linear import linear

REDUCTIONS = ("mean", "sum")


def cross_entropy(logits_TV: torch.Tensor, labels_T: torch.Tensor, *, reduction: str, ignore_index: int) -> torch.Tensor:
    """loss = sum over supervised rows t of (logsumexp(logits[t]) - logits[t, labels[t]]), over their count where reduction is mean.

    A row is supervised unless its label is `ignore_index`. Scalar, in the logits' dtype; the labels are int64.

    Raises:
        ValueError: an unknown reduction, a label outside the vocabulary, or a mean over no row.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction is {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    supervised_T = labels_T != ignore_index
    _require_in_vocabulary(labels_T, supervised_T, vocabulary=logits_TV.shape[1], ignore_index=ignore_index)
    if reduction == "mean" and not bool(supervised_T.any()):
        raise ValueError(
            f"cross_entropy: all {labels_T.numel()} labels are ignore_index ({ignore_index}), and a mean over no row is 0 / 0; "
            "give at least one supervised row, or reduction = 'sum'"
        )
    return torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction=reduction, ignore_index=ignore_index)


def chunked_cross_entropy(x_TD: torch.Tensor, head_VD: torch.Tensor, labels_T: torch.Tensor, *, ignore_index: int) -> torch.Tensor:
    """The mean cross-entropy of logits = x head^T, without the [T, V] matrix of logits. Scalar, in x's dtype.

    Rows go in about sqrt(T) chunks of about sqrt(T) rows; a chunk's logits are made again in the backward pass, so that no two
    chunks' logits are held at once.

    Raises:
        ValueError: a label outside the vocabulary, or no supervised row.
    """
    count = int((labels_T != ignore_index).sum())
    if count == 0:
        raise ValueError(
            f"cross_entropy: all {labels_T.numel()} labels are ignore_index ({ignore_index}); give at least one supervised row"
        )

    def chunk_sum(x_CD: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
        return cross_entropy(linear(x_CD, head_VD), labels_C, reduction="sum", ignore_index=ignore_index)

    rows = math.isqrt(labels_T.numel() - 1) + 1
    chunks = zip(torch.split(x_TD, rows), torch.split(labels_T, rows), strict=True)
    sums = [checkpoint(chunk_sum, x_CD, labels_C, use_reentrant=False, preserve_rng_state=False) for x_CD, labels_C in chunks]
    return torch.stack(sums).sum() / count


def _require_in_vocabulary(labels_T: torch.Tensor, supervised_T: torch.Tensor, *, vocabulary: int, ignore_index: int) -> None:
    """CUDA's kernel stops the whole process on such a label, so it is looked for first."""
    outside = supervised_T & ((labels_T < 0) | (labels_T >= vocabulary))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"cross_entropy: labels[{row}] is {int(labels_T[row])}; allowed are 0 to {vocabulary - 1} (the logits have {vocabulary} "
            f"columns) and ignore_index ({ignore_index}); mask the row with ignore_index or correct its label"
        )
