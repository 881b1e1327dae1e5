"""Softmax cross-entropy with ignored rows, in float64, with the intermediate values that its bound needs.

loss = sum over t with labels[t] != ignore_index of (log sum_v exp(z[t, v]) - z[t, labels[t]]), divided by the
number of those rows where reduction is mean (Goodfellow et al. 2016, section 6.2.2.3; the reduction as PyTorch documents it).

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Loss and gradient, and what they were computed from.

    loss: scalar; logits_grad [T, V]; supervised [T]; shifted [T, V] = z - max z; log_sum [T] = log sum exp(shifted);
    token_loss [T] (0 where ignored); probability [T, V]; scale: d loss / d token_loss times the cotangent.
    """

    loss: np.ndarray
    logits_grad: np.ndarray
    supervised: np.ndarray
    shifted: np.ndarray
    log_sum: np.ndarray
    token_loss: np.ndarray
    label_column: np.ndarray
    probability: np.ndarray
    scale: float
    count: int


def cross_entropy(logits_TV: np.ndarray, labels_T: np.ndarray, *, reduction: str, ignore_index: int, loss_bar: float) -> CrossEntropy:
    """The loss and its gradient with respect to the logits, for a cotangent of the loss."""
    logits = logits_TV.astype(np.float64)
    supervised = labels_T != ignore_index
    column = np.where(supervised, labels_T, 0)
    rows = np.arange(len(labels_T))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    token_loss = np.where(supervised, log_sum - shifted[rows, column], 0.0)
    count = int(supervised.sum())
    divisor = count if reduction == "mean" else 1
    probability = np.exp(shifted - log_sum[:, None])
    one_hot = np.zeros_like(probability)
    one_hot[rows, column] = 1.0
    scale = loss_bar / divisor
    return CrossEntropy(
        loss=np.asarray(token_loss.sum() / divisor),
        logits_grad=np.where(supervised[:, None], scale * (probability - one_hot), 0.0),
        supervised=supervised,
        shifted=shifted,
        log_sum=log_sum,
        token_loss=token_loss,
        label_column=column,
        probability=probability,
        scale=scale,
        count=count,
    )
