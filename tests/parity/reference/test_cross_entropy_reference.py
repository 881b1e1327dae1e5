"""The reference of cross-entropy against 50 digits, and against what its formula says by hand."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from parity.reference.cross_entropy import CrossEntropy, cross_entropy

RNG = np.random.default_rng(5)
LOGITS = 4 * RNG.standard_normal((6, 9))
LABELS = np.array([0, 8, -100, 3, -100, 5])


def of(
    logits: np.ndarray = LOGITS, labels: np.ndarray = LABELS, *, reduction: str = "mean", ignore: int = -100, bar: float = 1.5
) -> CrossEntropy:
    return cross_entropy(logits, labels, reduction=reduction, ignore_index=ignore, loss_bar=bar)


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
def test_fifty_digits(reduction: str, scale: float) -> None:
    loss, gradient = fifty_digits(LOGITS * scale, LABELS, mean=reduction == "mean", bar=1.5)
    got = of(LOGITS * scale, reduction=reduction)
    assert float(got.loss) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(got.logits_grad, gradient, rtol=1e-11, atol=1e-16)


def test_by_hand() -> None:
    """Two classes, logits (log 3, 0): probabilities 3/4 and 1/4."""
    got = of(np.array([[math.log(3), 0.0]]), np.array([1]), bar=1.0)
    assert float(got.loss) == pytest.approx(math.log(4))
    np.testing.assert_allclose(got.logits_grad, [[0.75, -0.75]])


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    assert float(of(np.full((6, 9), 1e4)).loss) == pytest.approx(math.log(9))


def test_the_mean_is_over_supervised_rows() -> None:
    assert float(of(reduction="sum").loss) == pytest.approx(4 * float(of(reduction="mean").loss))


def test_ignored_rows_have_no_gradient_whatever_they_hold() -> None:
    other = LOGITS.copy()
    other[[2, 4]] = 1e6
    np.testing.assert_array_equal(of(other).logits_grad, of().logits_grad)
    assert not of().logits_grad[[2, 4]].any()
    assert not np.signbit(of().logits_grad[[2, 4]]).any()


@pytest.mark.parametrize("ignore", [-1, 0, 3])
def test_the_index_that_is_ignored_is_the_one_that_was_given(ignore: int) -> None:
    labels = np.array([ignore, 1, 2, ignore, 4, 5])
    got = of(labels=labels, ignore=ignore)
    assert got.count == 4
    np.testing.assert_array_equal(got.supervised, labels != ignore)


def test_each_row_of_the_gradient_sums_to_zero() -> None:
    np.testing.assert_allclose(of().logits_grad.sum(axis=1), 0, atol=1e-15)


def test_nothing_overflows() -> None:
    got = of(np.array([[1e5, -1e5], [-1e300, 1e300]]), np.array([1, 1]), bar=1.0)
    assert float(got.loss) == pytest.approx(1e5)
    assert np.isfinite(got.logits_grad).all()


def test_what_it_was_computed_from_belongs_together() -> None:
    got = of()
    np.testing.assert_allclose(got.shifted.max(axis=1), 0)
    np.testing.assert_allclose(got.probability.sum(axis=1), 1)
    assert got.scale == 1.5 / 4
    assert float(got.token_loss.sum()) / 4 == pytest.approx(float(got.loss))
    assert not got.token_loss[[2, 4]].any()
