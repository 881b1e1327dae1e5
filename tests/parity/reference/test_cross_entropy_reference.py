"""The reference of cross-entropy against 50 digits, and against what its formula says by hand."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from parity.reference.cross_entropy import cross_entropy
from parity.reference.running_error import REFERENCE, Computed

RNG = np.random.default_rng(5)
LOGITS = 4 * RNG.standard_normal((6, 9))
LABELS = np.array([0, 8, -100, 3, -100, 5])


def of(
    logits: np.ndarray = LOGITS, labels: np.ndarray = LABELS, *, reduction: str = "mean", ignore: int = -100, bar: float = 1.5
) -> dict[str, Computed]:
    tensors = {"logits": logits, "labels": labels, "loss_bar": np.asarray(bar)}
    return cross_entropy(tensors, {"reduction": reduction, "ignore_index": ignore}, REFERENCE)


def loss_of(answer: dict[str, Computed]) -> float:
    return float(answer["loss"].value)


def fifty_digits(logits: np.ndarray, labels: np.ndarray, *, mean: bool, bar: float) -> tuple[float, np.ndarray]:
    with mpmath.workdps(50):
        kept = [row for row, label in enumerate(labels) if label != -100]
        divisor = len(kept) if mean else 1
        loss, gradient = mpmath.mpf(0), np.zeros(logits.shape)
        for row in kept:
            z = [mpmath.mpf(float(value)) for value in logits[row]]
            total = mpmath.fsum(mpmath.exp(value) for value in z)
            loss += mpmath.log(total) - z[labels[row]]
            for column, value in enumerate(z):
                gradient[row, column] = float(mpmath.mpf(bar) / divisor * (mpmath.exp(value) / total - int(column == labels[row])))
        return float(loss / divisor), gradient


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_fifty_digits_lie_within_the_references_own_error(reduction: str, scale: float) -> None:
    loss, gradient = fifty_digits(LOGITS * scale, LABELS, mean=reduction == "mean", bar=1.5)
    got = of(LOGITS * scale, reduction=reduction)
    assert abs(loss_of(got) - loss) <= got["loss"].error
    assert np.all(np.abs(got["logits_grad"].value - gradient) <= got["logits_grad"].error)
    assert got["logits_grad"].value[[0, 1, 3, 5]].any(axis=1).all()


def test_by_hand() -> None:
    """Two classes, logits (log 3, 0): probabilities 3/4 and 1/4."""
    got = of(np.array([[math.log(3), 0.0]]), np.array([1]), bar=1.0)
    assert loss_of(got) == pytest.approx(math.log(4))
    np.testing.assert_allclose(got["logits_grad"].value, [[0.75, -0.75]])


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    assert loss_of(of(np.full((6, 9), 1e4))) == pytest.approx(math.log(9))


def test_the_mean_is_over_supervised_rows() -> None:
    assert loss_of(of(reduction="sum")) == pytest.approx(4 * loss_of(of(reduction="mean")))


def test_mean_and_minus_one_hundred_unless_given() -> None:
    tensors = {"logits": LOGITS, "labels": LABELS}
    assert cross_entropy(tensors, {}, REFERENCE)["loss"].value == of()["loss"].value
    assert set(cross_entropy(tensors, {}, REFERENCE)) == {"loss"}


def test_ignored_rows_have_no_gradient_whatever_they_hold() -> None:
    other = LOGITS.copy()
    other[[2, 4]] = 1e6
    np.testing.assert_array_equal(of(other)["logits_grad"].value, of()["logits_grad"].value)
    assert not of()["logits_grad"].value[[2, 4]].any()
    assert not of()["logits_grad"].error[[2, 4]].any()
    assert not np.signbit(of()["logits_grad"].value[[2, 4]]).any()


@pytest.mark.parametrize("ignore", [-1, 0, 3])
def test_the_index_that_is_ignored_is_the_one_that_was_given(ignore: int) -> None:
    labels = np.array([ignore, 1, 2, ignore, 4, 5])
    got = of(labels=labels, ignore=ignore)
    np.testing.assert_array_equal(got["logits_grad"].value.any(axis=1), labels != ignore)
    expected, _ = fifty_digits(LOGITS, np.where(labels == ignore, -100, labels), mean=True, bar=1.5)
    assert loss_of(got) == pytest.approx(expected, rel=1e-13)


def test_each_row_of_the_gradient_sums_to_zero() -> None:
    total = of()["logits_grad"].sum(1)
    assert np.all(np.abs(total.value) <= total.error)


def test_nothing_overflows() -> None:
    got = of(np.array([[1e5, -1e5], [-1e300, 1e300]]), np.array([1, 1]), bar=1.0)
    assert loss_of(got) == pytest.approx(1e5)
    assert np.isfinite(got["logits_grad"].value).all()
    assert np.isfinite(got["logits_grad"].error).all()


def test_a_logit_of_minus_infinity_is_as_if_it_were_not_there() -> None:
    forbidden = RNG.random(LOGITS.shape) < 0.5
    forbidden[[0, 1, 3, 5], [0, 8, 3, 5]] = False
    forbidden[:, 7] = False  # an ignored row, too, has a token that is allowed
    got = of(np.where(forbidden, -np.inf, LOGITS))
    far = of(np.where(forbidden, -1e4, LOGITS))
    assert loss_of(got) == loss_of(far)
    np.testing.assert_array_equal(got["logits_grad"].value, far["logits_grad"].value)
    assert not got["logits_grad"].value[forbidden].any()
    assert not got["logits_grad"].error[forbidden].any()
    assert np.isfinite(got["logits_grad"].error).all()


def test_the_only_token_that_is_allowed_costs_nothing() -> None:
    got = of(np.array([[-np.inf, 3.0, -np.inf]]), np.array([1]))
    assert loss_of(got) == 0
    assert not got["logits_grad"].value.any()
