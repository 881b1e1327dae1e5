"""Cross-entropy.

Shape suffixes: B sequences, T tokens, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor, dtypes

from stacks.tinygrad_lora.elementary import exp, log
from stacks.tinygrad_lora.widen import wide

REDUCTIONS = ("mean", "sum")


def rows(labels_T: np.ndarray, *, vocabulary: int, reduction: str, ignore_index: int, dtype: str) -> dict[str, np.ndarray]:
    """What `cross_entropy` takes of labels: the label of each row, which rows count, and what their sum is divided by.

    Args:
        labels_T: int64, on the host.
        reduction: "mean" divides by the number of rows that count, "sum" by 1.
        ignore_index: the label of a row that does not count; such a row has no part in the gradient, whatever its logits.

    Returns:
        label (int32) and counted (bool), [T, 1]; count, of shape [1], in `dtype`.

    Raises:
        ValueError: a label outside of the vocabulary, or a mean over no rows.
    """
    supervised_T = _check_labels(labels_T, vocabulary, reduction, ignore_index)
    label_T1 = np.where(supervised_T, labels_T, 0).astype(np.int32).reshape(-1, 1)
    divisor_1 = np.array([supervised_T.sum() if reduction == "mean" else 1], dtype=dtype)
    return {"label": label_T1, "counted": supervised_T.reshape(-1, 1), "count": divisor_1}


def cross_entropy(logits_TV: Tensor, label_T1: Tensor, counted_T1: Tensor, count_1: Tensor) -> Tensor:
    """The sum over the rows that count of (logsumexp(logits[t]) - logits[t, label[t]]), over count, of shape [1].

    With the row's maximum taken off first, so that no exponential overflows and the two terms do not cancel.

    Args:
        logits_TV: float32 or float64; accumulated in that dtype.
        label_T1, counted_T1, count_1: as `rows` makes them.
    """
    # where, not a product: an ignored row may hold infinities, and 0 * inf is no zero
    kept_TV = counted_T1.where(logits_TV, 0)
    shifted_TV = kept_TV - kept_TV.max(axis=1, keepdim=True).detach()
    chosen_TV = Tensor.arange(int(logits_TV.shape[1]), dtype=dtypes.int32).reshape(1, -1) == label_T1
    picked_T1 = chosen_TV.where(shifted_TV, 0).sum(axis=1, keepdim=True, dtype=logits_TV.dtype)
    loss_T1 = log(exp(shifted_TV).sum(axis=1, keepdim=True, dtype=logits_TV.dtype)) - picked_T1
    return counted_T1.where(loss_T1, 0).sum(axis=0, dtype=logits_TV.dtype) / count_1


def next_tokens(labels_BT: np.ndarray, *, dtype: str, ignore_index: int) -> dict[str, np.ndarray]:
    """What `next_token_loss` takes of labels: the label of the token after each one, which of them count, and how many do.

    Args:
        labels_BT: int64; of each sequence the first is nothing's next token, and the last token has none.

    Returns:
        next_token (int32) and counted (bool), [B * T, 1]; count, of shape [1], in `dtype`.
    """
    next_BT = np.full_like(labels_BT, ignore_index)
    next_BT[:, :-1] = labels_BT[:, 1:]
    counted_T1 = (next_BT != ignore_index).reshape(-1, 1)
    next_token_T1 = np.where(counted_T1, next_BT.reshape(-1, 1), 0).astype(np.int32)
    return {"next_token": next_token_T1, "counted": counted_T1, "count": np.array([counted_T1.sum()], dtype=dtype)}


def next_token_loss(logits_BTV: Tensor, next_token_T1: Tensor, counted_T1: Tensor, count_1: Tensor) -> Tensor:
    """The mean of -log softmax(logits[b, t])[labels[b, t + 1]] over the labels that count, of shape [1].

    Args:
        logits_BTV: float32 or float64; accumulated in that dtype. T in the other names: all tokens of all sequences.
        next_token_T1, counted_T1, count_1: as `next_tokens` makes them.
    """
    return cross_entropy(logits_BTV.reshape(-1, logits_BTV.shape[-1]), next_token_T1, counted_T1, count_1)


def chunk_sum(logits_CV: Tensor, label_C1: Tensor, counted_C1: Tensor) -> Tensor:
    """The sum over the rows that count of (logsumexp(logits[c]) - logits[c, label[c]]), of shape [1].

    Args:
        logits_CV: float32 or float64, accumulated in that dtype, or bfloat16, in float32.
        label_C1, counted_C1: as `rows` makes them; a row that does not count may stand for none.
    """
    one_1 = Tensor.ones(1, dtype=wide(logits_CV).dtype, device=logits_CV.device)
    return cross_entropy(wide(logits_CV), label_C1, counted_C1, one_1)


def chunk_bar(logits_CV: Tensor, label_C1: Tensor, counted_C1: Tensor) -> Tensor:
    """The gradient of `chunk_sum`, softmax(logits) less one at the label, exactly 0 in a row that does not count; the dtype of logits."""
    wide_CV = wide(logits_CV)
    shifted_CV = counted_C1.where(wide_CV, 0) - counted_C1.where(wide_CV, 0).max(axis=1, keepdim=True)
    exp_CV = exp(shifted_CV)
    chosen_CV = Tensor.arange(int(logits_CV.shape[1]), dtype=dtypes.int32).reshape(1, -1) == label_C1
    bar_CV = exp_CV / exp_CV.sum(axis=1, keepdim=True, dtype=wide_CV.dtype) - chosen_CV.where(1, 0).cast(wide_CV.dtype)
    return counted_C1.where(bar_CV, 0).cast(logits_CV.dtype)


def _check_labels(labels_T: np.ndarray, vocabulary: int, reduction: str, ignore_index: int) -> np.ndarray:
    """Which rows count."""
    supervised_T: np.ndarray = labels_T != ignore_index
    outside = supervised_T & ((labels_T < 0) | (labels_T >= vocabulary))
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"labels[{row}] is {int(labels_T[row])}; allowed: 0 to {vocabulary - 1} (the vocabulary of the logits), or "
            f"ignore_index = {ignore_index} for a row that does not count"
        )
    if reduction == "mean" and not supervised_T.any():
        raise ValueError(
            f"all {len(labels_T)} labels are ignore_index = {ignore_index}, so the mean is over no rows; "
            "give at least one label, or reduction 'sum'"
        )
    return supervised_T
