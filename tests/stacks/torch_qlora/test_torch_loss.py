"""Cross-entropy and its gradient against the formula in extended precision; without its logits; refusals in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stacks.torch_qlora import loss as loss_module
from stacks.torch_qlora.loss import chunked_cross_entropy, cross_entropy
from stacks.torch_qlora.ops import TorchQlora
from tests.stacks.torch_qlora.tiny_torch_graph import draw, gamma

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


# Without the matrix of logits

ROWS = [1, 2, 7, 24]


def _rows(rows: int, *, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, head and labels; of more than two rows, some do not count."""
    labels = torch.arange(rows)
    if rows > 2:
        labels[[1, rows - 1]] = -100
    return draw(rows, 96).to(dtype).requires_grad_(), draw(97, 96, seed=5).to(dtype), labels


@pytest.mark.parametrize("chunk", [1, 97, 300, 2**24])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", ROWS)
def test_the_chunked_loss_is_the_loss(rows: int, reduction: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunk, of which a row is the least."""
    monkeypatch.setattr(loss_module, "CHUNK_VALUES", chunk)
    x, head, labels = _rows(rows)
    ours = chunked_cross_entropy(x, head, labels, ignore_index=-100, reduction=reduction)
    plain = cross_entropy(x @ head.T, labels, reduction=reduction, ignore_index=-100)
    (gradient,), (plain_gradient,) = (torch.autograd.grad(loss, x, torch.tensor(1.7).double()) for loss in (ours, plain))
    # Each row is the same, but for the order in a product's sum; the sum adds `rows` terms in another order.
    reach = rows * gamma(2 * (96 + 97 + rows), "float64") * float((draw(rows, 96).abs() @ head.abs().T).max())
    assert abs(ours.detach() - plain.detach()) <= reach
    assert bool((gradient - plain_gradient).abs().max() <= 1.7 * reach * head.abs().sum(0).max())
    assert bool(gradient[labels != -100].any(dim=1).all())
    assert not gradient[labels == -100].any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_chunked_losss_gradient_is_its_derivative(reduction: str) -> None:
    x, head, labels = _rows(7)
    assert torch.autograd.gradcheck(lambda x: chunked_cross_entropy(x, head, labels, ignore_index=-100, reduction=reduction), x)


@pytest.mark.parametrize("chunked", [False, True])
def test_of_bfloat16_rows_the_loss_is_float32(chunked: bool) -> None:
    """Logits are rounded to bfloat16, as the product gives them; from there on all is float32, and the gradient rounded once or twice."""
    x, head, labels = _rows(7, dtype=torch.bfloat16)
    logits = (x @ head.T).float()
    exact = cross_entropy(logits.double(), labels, reduction="sum", ignore_index=-100)
    if chunked:
        got = chunked_cross_entropy(x, head, labels, ignore_index=-100, reduction="sum")
    else:
        got = cross_entropy(x @ head.T, labels, reduction="sum", ignore_index=-100)
    assert got.dtype == torch.float32
    assert abs(got.detach().double() - exact.detach()) <= gamma(2 * 97, "float32") * float(logits.detach().abs().max()) * 7
    (gradient,), (wide,) = torch.autograd.grad(got, x), torch.autograd.grad(exact, x)
    assert gradient.dtype == torch.bfloat16
    probability = torch.softmax(logits.double(), dim=1) + torch.nn.functional.one_hot(labels.clamp(min=0), 97)
    allowed = (3 * 2.0**-8 + gamma(97, "float32")) * (probability @ head.double().abs())
    assert bool(((gradient.double() - wide.double()).abs() <= allowed).all())


@pytest.mark.parametrize("rows", [64, 0])
def test_only_a_chunk_of_the_rows_that_count_is_projected(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, counted = 5000, 10
    monkeypatch.setattr(loss_module, "CHUNK_VALUES", 4 * vocabulary)
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != head.untyped_storage().data_ptr():
                sizes.append(result.numel())
                if func is torch.ops.aten.mm.default and result.shape[1] == vocabulary:
                    products.append(len(result))
            return result

    products: list[int] = []
    x, head, labels = draw(rows, 8).requires_grad_(), draw(vocabulary, 8), torch.full((rows,), -100)
    labels[:counted] = 7
    with Watch():
        (gradient,) = torch.autograd.grad(chunked_cross_entropy(x, head, labels, ignore_index=-100, reduction="sum"), x)
    assert max(sizes) == 4 * vocabulary if rows else gradient.shape == (0, 8)
    assert products == ([4, 4, 2] if rows else [])


def test_the_chunked_loss_over_no_row_or_outside_the_vocabulary_is_refused() -> None:
    x, head = draw(3, 8), draw(9, 8)
    with pytest.raises(ValueError, match=r"all 3 labels are ignore_index \(-100\), and a mean over no row is 0 / 0; give at least one"):
        chunked_cross_entropy(x, head, torch.full((3,), -100), ignore_index=-100)
    assert chunked_cross_entropy(x, head, torch.full((3,), -100), ignore_index=-100, reduction="sum") == 0
    with pytest.raises(ValueError, match=r"is 9; allowed are 0 to 8"):
        chunked_cross_entropy(x, head, torch.tensor([1, 9, 2]), ignore_index=-100)
