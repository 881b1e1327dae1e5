"""Softmax cross-entropy with ignored rows, and its gradient (Goodfellow et al. 2016, section 6.2.2.3; reduction as PyTorch documents it).

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed

IGNORE_INDEX = -100
"""What `ignore_index` is unless given."""


def cross_entropy(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """loss = sum over rows with labels[t] != ignore_index of -log p[t, labels[t]], over their count where reduction is mean.

    d = z - max z; e = exp d; S = sum e; log p = d - log S, so that nothing overflows: a stack that forms max z + log S first and
    takes z from it loses u |max z|. logits_grad = loss_bar / count (p - 1[v = label]), p = exp(log p) or e / S; exactly 0 in an
    ignored row. A logit of -inf has p = 0 and no gradient; the label's is finite, and one row at least is not ignored.
    """
    labels_T = tensors["labels"]
    supervised_T = labels_T != attrs.get("ignore_index", IGNORE_INDEX)
    present_TV = ~np.isneginf(tensors["logits"])
    z_TV = one.given(np.where(present_TV, tensors["logits"], np.min(tensors["logits"], where=present_TV, initial=np.inf)))
    label_TV = (np.arange(z_TV.shape[1]) == labels_T[:, None]) & supervised_T[:, None]
    d_TV = z_TV - z_TV.max(-1, keepdims=True)
    e_TV = d_TV.exp().where(present_TV)
    total_T1 = e_TV.sum(-1, keepdims=True)
    log_p_TV = d_TV - total_T1.log()
    count = float(supervised_T.sum()) if attrs.get("reduction", "mean") == "mean" else 1.0
    loss = (-log_p_TV).where(label_TV).reshape(-1).sum(0)
    if count != 1:
        loss = loss / one.exact(count)
    answer = {"loss": loss}
    if "loss_bar" in tensors:
        p_TV = log_p_TV.exp().either(e_TV / total_T1).where(present_TV)
        answer["logits_grad"] = _gradient(p_TV, label_TV, one.given(tensors["loss_bar"]), count).where(supervised_T[:, None])
    return answer


def _gradient(p_TV: Computed, label_TV: np.ndarray, loss_bar: Computed, count: float) -> Computed:
    """(p - 1[label]) loss_bar / count, the difference taken first or last."""
    one = p_TV.arithmetic
    scale = loss_bar / one.exact(count) if count != 1 else loss_bar
    one_hot_TV = one.exact(label_TV.astype(np.float64))
    return ((p_TV - one_hot_TV) * scale).either(p_TV * scale - one_hot_TV * scale)
