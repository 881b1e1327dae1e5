"""The cross-entropy of the tinygrad stack against NumPy in float64, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad import Tensor

from contract.worker.process import RequestFailed, StackProcess
from stacks.tinygrad_lora import loss
from stacks.tinygrad_lora.host import rounded, to_device, to_host
from stacks.tinygrad_lora.ops import TinygradLora

SHAPES = ((1, 2), (6, 50), (9, 257))
IGNORED = -100


def compute(
    stack: StackProcess, logits: np.ndarray, labels: np.ndarray, reduction: str, bar: float = 1.0, ignore_index: int = IGNORED
) -> tuple[float, np.ndarray]:
    attrs = {"dtype": logits.dtype.name, "reduction": reduction, "ignore_index": ignore_index}
    answer = stack.compute("cross_entropy", attrs, {"logits": logits, "labels": labels, "loss_bar": np.array(bar, logits.dtype)}).tensors
    return float(answer["loss"]), answer["logits_grad"]


def rounding(dtype: str, shape: tuple[int, int]) -> float:
    """gamma_k (Higham 2002, section 3.1), k for both sums and, per term, the shift and two functions good to about an ulp each."""
    k, u = 2 * sum(shape) + 16, np.finfo(dtype).eps / 2
    return float(k * u / (1 - k * u))


def reference(logits: np.ndarray, labels: np.ndarray, reduction: str, bar: float) -> tuple[float, np.ndarray]:
    kept = labels != IGNORED
    shifted = logits[kept].astype(np.float64) - logits[kept].max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    chosen = np.eye(logits.shape[1])[labels[kept]]
    count = kept.sum() if reduction == "mean" else 1
    gradient = np.zeros(logits.shape)
    gradient[kept] = (np.exp(shifted) / total - chosen) * bar / count
    return float((np.log(total)[:, 0] - (shifted * chosen).sum(axis=1)).sum() / count), gradient


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32 - 1),
    reduction=st.sampled_from(("mean", "sum")),
    scale=st.sampled_from((1, 1e4)),
)
def test_loss_and_gradient(stack: StackProcess, dtype: str, shape: tuple[int, int], seed: int, reduction: str, scale: float) -> None:
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal(shape) * scale).astype(dtype)
    labels = generator.integers(0, shape[1], shape[0])
    labels[1::3] = IGNORED
    bar = float(np.dtype(dtype).type(generator.normal()))
    loss, gradient = compute(stack, logits, labels, reduction, bar)
    expected_loss, expected_gradient = reference(logits, labels, reduction, bar)
    relative = rounding(dtype, shape)
    assert loss == pytest.approx(expected_loss, rel=relative)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=relative * abs(bar))
    assert np.abs(expected_gradient).max() > relative * abs(bar) or scale > 1
    assert not gradient[1::3].any()


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_do_not_overflow(stack: StackProcess, scale: float) -> None:
    logits = np.array([[-1, 1], [1, -1]], np.float32) * np.float32(scale)
    loss, gradient = compute(stack, logits, np.array([0, 0]), "sum")
    assert loss == pytest.approx(2 * scale)
    np.testing.assert_array_equal(gradient, np.float32([[-1, 1], [0, 0]]))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_ignored_row_has_no_part_whatever_it_holds(stack: StackProcess, poison: float) -> None:
    logits = np.random.default_rng(2).standard_normal((6, 50)).astype(np.float32)
    labels = np.array([3, IGNORED, 49, 0, IGNORED, 7])
    clean = compute(stack, logits, labels, "mean")
    logits[[1, 4], 5] = poison
    loss, gradient = compute(stack, logits, labels, "mean")
    assert loss == clean[0]
    np.testing.assert_array_equal(gradient, clean[1])
    assert not gradient[[1, 4]].any()


def test_a_logit_of_minus_infinity_is_a_probability_of_zero(stack: StackProcess) -> None:
    loss, gradient = compute(stack, np.array([[0, -np.inf]], np.float32), np.array([0]), "sum")
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.float32([[0, 0]]))


def test_a_sum_over_no_rows_is_zero(stack: StackProcess) -> None:
    loss, gradient = compute(stack, np.ones((6, 50), np.float32), np.full(6, IGNORED), "sum")
    assert loss == 0
    assert not gradient.any()


def test_another_ignore_index(stack: StackProcess) -> None:
    logits = np.random.default_rng(2).standard_normal((6, 50)).astype(np.float32)
    labels = np.array([3, 4, 49, 0, 4, 7])
    assert (
        compute(stack, logits, labels, "mean", ignore_index=4)[0]
        == compute(stack, logits, np.where(labels == 4, IGNORED, labels), "mean")[0]
    )


@pytest.mark.parametrize(
    ("labels", "reduction", "message"),
    [
        ([IGNORED] * 6, "mean", "mean is over no rows"),
        ([0, 1, 50, 3, 4, 5], "mean", r"labels\[2\] is 50; allowed: 0 to 49"),
        ([0, 1, 2, -1, 4, 5], "sum", r"labels\[3\] is -1; allowed: 0 to 49"),
        ([0, 1, 2, 3, 4, 5], "max", "reduction is 'max'; allowed: mean, sum"),
    ],
)
def test_what_is_refused(stack: StackProcess, labels: list[int], reduction: str, message: str) -> None:
    with pytest.raises(RequestFailed, match=message) as caught:
        compute(stack, np.ones((6, 50), np.float32), np.array(labels), reduction)
    assert caught.value.error_class == "ValueError"


def test_a_chunk_is_the_sum_over_its_rows(cpu: TinygradLora) -> None:
    """float64 against the formula; a row that does not count, whatever it holds, has no part in either."""
    logits = np.random.default_rng(6).standard_normal((5, 7)) * 30
    label, counted = np.array([0, 6, 3, 2, 2], np.int32)[:, None], np.array([1, 1, 0, 1, 1], bool)[:, None]
    shifted = logits - logits.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(shifted).sum(axis=1))
    expected = (logsumexp - shifted[np.arange(5), label[:, 0]])[counted[:, 0]].sum()
    bar = counted * (np.exp(shifted - logsumexp[:, None]) - np.eye(7)[label[:, 0]])
    logits[2] = [np.inf, np.nan, 1, 2, 3, 4, 5]
    given = (Tensor(logits).realize(), Tensor(label).realize(), Tensor(counted).realize())
    # a few dozen float64 roundings of numbers up to 100
    np.testing.assert_allclose(loss.chunk_sum(*given).numpy(), [expected], rtol=2.0**-45)
    np.testing.assert_allclose(loss.chunk_bar(*given).numpy(), bar, rtol=2.0**-40, atol=2.0**-48)
    assert not loss.chunk_bar(*given).numpy()[2].any()


def test_a_chunk_in_bfloat16_is_one_in_float32(cpu: TinygradLora) -> None:
    """Whose logits are given in bfloat16, and whose gradient is rounded to it at the end."""
    logits = rounded(np.random.default_rng(7).standard_normal((5, 7)) * 9, "bfloat16")
    label, counted = np.array([0, 6, 3, 2, 2], np.int32)[:, None], np.array([1, 1, 0, 1, 1], bool)[:, None]
    ending = (Tensor(label).realize(), Tensor(counted).realize())
    narrow, whole = to_device(logits, "CPU").realize(), to_device(logits.astype(np.float32), "CPU").realize()
    assert loss.chunk_sum(narrow, *ending).numpy().tobytes() == loss.chunk_sum(whole, *ending).numpy().tobytes()
    bar, expected = loss.chunk_bar(narrow, *ending), loss.chunk_bar(whole, *ending)
    assert to_host(bar).tobytes() == rounded(to_host(expected), "bfloat16").tobytes()
