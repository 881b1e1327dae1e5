"""Cross-entropy and its gradient against the formula in extended precision; refusals in words."""

from __future__ import annotations

import numpy as np
import pytest

from stacks.torch_qlora.ops import TorchQlora

IGNORE = -7
T, V = 9, 33


def _logits(scale: float = 10.0) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((T, V)) * scale


def _labels() -> np.ndarray:
    labels = np.random.default_rng(4).integers(0, V, T)
    labels[[2, 8]] = IGNORE
    return labels


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_gradient_are_the_formula(reduction: str, dtype: str) -> None:
    logits, labels, bar = _logits().astype(dtype), _labels(), np.asarray(1.7, dtype)
    attrs = {"dtype": dtype, "reduction": reduction, "ignore_index": IGNORE}
    got = TorchQlora("CPU").compute("cross_entropy", attrs, {"logits": logits, "labels": labels, "loss_bar": bar}).tensors
    rows = np.flatnonzero(labels != IGNORE)
    wide = logits[rows].astype(np.longdouble)
    sums = np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    log_sums = np.log(sums) + wide.max(axis=1)
    count = len(rows) if reduction == "mean" else 1
    loss = (log_sums - wide[np.arange(len(rows)), labels[rows]]).sum() / count
    softmax = np.exp(wide - log_sums[:, None])
    gradient = np.zeros((T, V), np.longdouble)
    gradient[rows] = softmax - np.eye(V)[labels[rows]]
    unit = np.finfo(dtype).eps
    reach = T + V + np.abs(wide).max()
    assert abs(got["loss"] - loss) <= reach * unit * np.abs(wide).max() * len(rows) / count
    allowed = reach * unit * np.abs(gradient) + reach * unit * np.where(np.abs(gradient) > 0.5, 1, 0)
    assert np.all(np.abs(got["logits_grad"] - gradient * bar / count) <= allowed * bar / count)
    assert not got["logits_grad"][[2, 8]].any()


def test_sum_over_no_row_is_zero_and_mean_is_refused() -> None:
    stack, tensors = TorchQlora("CPU"), {"logits": _logits().astype(np.float32), "labels": np.full(T, -100)}
    assert stack.compute("cross_entropy", {"reduction": "sum"}, tensors).tensors["loss"] == 0
    with pytest.raises(ValueError, match=r"all 9 labels are ignore_index \(-100\)"):
        stack.compute("cross_entropy", {"reduction": "mean"}, tensors)


@pytest.mark.parametrize("label", [V, -1, -100])
def test_label_outside_the_vocabulary_is_refused(label: int) -> None:
    labels = _labels()
    labels[4] = label
    with pytest.raises(ValueError, match=rf"labels\[4\] is {label}; allowed are 0 to {V - 1}"):
        TorchQlora("CPU").compute("cross_entropy", {"ignore_index": IGNORE}, {"logits": _logits().astype(np.float32), "labels": labels})


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction is 'none'; allowed: mean, sum"):
        TorchQlora("CPU").compute("cross_entropy", {"reduction": "none"}, {"logits": _logits().astype(np.float32), "labels": _labels()})
