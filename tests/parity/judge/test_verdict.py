"""Comparisons: just above the bound fails, NaN and infinity never pass, and the worst element is the one that is named."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from parity.judge.bounds import Bound
from parity.judge.verdict import Comparison, at_most, identical, root_mean_square, rows, within

RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, 5))
LIMIT = Bound(np.full(X.shape, 1e-3), "a test")
SOURCE = "a test"
Compare = Callable[[np.ndarray, np.ndarray], Comparison]
COMPARISONS: dict[str, Compare] = {
    "within": lambda observed, expected: within("y", observed, expected, LIMIT),
    "root mean square": lambda observed, expected: root_mean_square("y", observed, expected, np.full(X.shape, 1e-3), 2.0, SOURCE),
    "rows": lambda observed, expected: rows("y", observed, expected, np.full(X.shape[:-1], 1e-3), SOURCE),
    "identical": lambda observed, expected: identical("y", observed, expected, SOURCE),
}


def changed(value: float, index: tuple[int, int]) -> np.ndarray:
    copy = X.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_same_passes(comparison: str) -> None:
    verdict = COMPARISONS[comparison](X, X)
    assert verdict.passed
    assert verdict.observed == 0
    assert verdict.headroom is None
    assert verdict.controls.caught == verdict.controls.applied == 4
    assert verdict.controls.missed == ()


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("index", [(0, 0), (2, 4)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["observed", "expected", "both"])
@pytest.mark.timeout(20)
def test_nothing_that_is_not_finite_passes(comparison: str, index: tuple[int, int], value: float, side: str) -> None:
    """On either side: of two stacks, the second one's answer is what the first is held against."""
    observed = changed(value, index) if side != "expected" else X
    expected = changed(value, index) if side != "observed" else X
    with np.errstate(invalid="ignore"):
        verdict = COMPARISONS[comparison](observed, expected)
    if comparison == "identical" and side == "both" and np.isinf(value):
        assert verdict.passed, "the same infinity is bit for bit the same"
    else:
        assert not verdict.passed


@pytest.mark.parametrize("factor", [1.0000001, 2.0, 1e9])
@pytest.mark.parametrize("sign", [1, -1])
def test_just_above_the_bound_fails(factor: float, sign: int) -> None:
    for index in np.ndindex(X.shape):
        verdict = within("y", changed(X[index] + sign * factor * 1e-3, index), X, LIMIT)
        assert not verdict.passed
        assert verdict.where == index
        assert verdict.observed == pytest.approx(factor * 1e-3)
        assert verdict.bound == 1e-3


@pytest.mark.parametrize("value", [1.0, -1.0, -5e-15, 0.0])
@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_a_bound_as_large_as_the_value_has_a_number_just_above(value: float, ulps: int) -> None:
    """Between a negative value and zero lie 2^62 numbers, most of them with the same difference to it: the control goes the other way."""
    limit = abs(value) if ulps == 0 else float(np.nextafter(abs(value), np.inf * ulps))
    expected = np.array([value, 2.0])
    verdict = within("y", expected.copy(), expected, Bound(np.array([max(limit, 0.0), 1.0]), SOURCE))
    assert verdict.passed
    assert verdict.controls.missed == ()


def test_just_below_the_bound_passes() -> None:
    verdict = within("y", X + 0.999e-3, X, LIMIT)
    assert verdict.passed
    assert verdict.headroom == pytest.approx(1 / 0.999)


def test_the_element_with_the_least_headroom_is_named_not_the_largest_error() -> None:
    limit = np.array([1.0, 1e-6, 1.0])
    verdict = within("y", np.array([0.5, 2e-6, 0.0]), np.zeros(3), Bound(limit, SOURCE))
    assert verdict.where == (1,)
    assert verdict.observed == pytest.approx(2e-6)


def test_an_error_where_none_is_allowed_is_the_worst() -> None:
    verdict = within("y", np.array([5.0, 1e-300]), np.zeros(2), Bound(np.array([1.0, 0.0]), SOURCE))
    assert verdict.where == (1,)


def test_a_bound_of_zero_means_equal() -> None:
    zero = Bound(np.zeros(X.shape), SOURCE)
    assert within("y", X, X, zero).passed
    assert not within("y", changed(float(np.nextafter(X[1, 1], 9)), (1, 1)), X, zero).passed


def test_a_bound_that_broadcasts() -> None:
    assert within("y", X + 1e-4, X, Bound(np.asarray(1e-3), SOURCE)).passed
    assert not within("y", X + 1e-2, X, Bound(np.asarray(1e-3), SOURCE)).passed


@pytest.mark.parametrize("limit", [np.inf, np.nan])
def test_a_bound_that_is_not_finite_judges_nothing(limit: float) -> None:
    """Every number would pass an infinite one, none the other."""
    with pytest.raises(ValueError, match="y: a limit is not finite"):
        within("y", X, X, Bound(np.full(X.shape, limit), SOURCE))


SPECIAL = np.array([1.0, np.inf, -np.inf, np.nan])


def test_special_values_are_compared_by_class_and_sign() -> None:
    bound = Bound(np.full(4, 0.1), SOURCE)
    assert within("y", SPECIAL, SPECIAL, bound, special=True).passed
    for place, wrong in ((0, np.nan), (0, np.inf), (0, 1.2), (1, -np.inf), (1, np.nan), (1, 1e300), (2, np.inf), (3, 0.0), (3, np.inf)):
        observed = SPECIAL.copy()
        observed[place] = wrong
        verdict = within("y", observed, SPECIAL, bound, special=True)
        assert (verdict.passed, verdict.where) == (False, (place,)), (place, wrong)


def test_special_values_that_nobody_drew_on_purpose_fail() -> None:
    assert not within("y", SPECIAL, SPECIAL, Bound(np.full(4, 0.1), SOURCE)).passed


def test_a_float32_answer_is_judged_at_its_own_value() -> None:
    x = np.array([1.0], dtype=np.float32)
    assert not within("y", x + np.float32(2**-23), x.astype(np.float64), Bound(np.array([2.0**-24]), SOURCE)).passed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_every_float_dtype_can_be_compared(dtype: str) -> None:
    x = X.astype(np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else dtype)
    for comparison in COMPARISONS.values():
        verdict = comparison(x, x)
        assert verdict.passed
        assert verdict.controls.missed == ()
        assert not comparison(-x, x).passed


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_every_shape_can_be_compared(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    verdict = within("y", np.asarray(x), np.asarray(x), Bound(np.full(shape, 1e-9), SOURCE))
    assert verdict.passed
    assert verdict.controls.missed == ()


@pytest.mark.parametrize("comparison", ["within", "root mean square", "identical"])
def test_an_empty_tensor_proves_nothing(comparison: str) -> None:
    nothing = np.zeros(0)
    with pytest.raises(ValueError, match="empty"):
        {
            "within": lambda: within("y", nothing, nothing, Bound(nothing, SOURCE)),
            "root mean square": lambda: root_mean_square("y", nothing, nothing, nothing, 1.0, SOURCE),
            "identical": lambda: identical("y", nothing, nothing, SOURCE),
        }[comparison]()


def test_the_root_mean_square_is_of_error_over_scale() -> None:
    scale = np.array([1.0, 10.0])
    verdict = root_mean_square("y", np.array([3.0, 40.0]), np.zeros(2), scale, 3.5, SOURCE)
    assert verdict.observed == pytest.approx(np.sqrt(12.5))
    assert not verdict.passed
    assert root_mean_square("y", np.array([3.0, 30.0]), np.zeros(2), scale, 3.0000001, SOURCE).passed
    assert verdict.tensor == "y (root mean square)"


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_identical_sees_one_bit_anywhere(dtype: str) -> None:
    x = (np.arange(24).reshape(4, 6) + 1).astype(dtype)
    for index in np.ndindex(x.shape):
        for bit in range(8 * x.itemsize):
            other = x.copy()
            view = other.view(f"u{x.itemsize}")
            view[index] ^= np.array(1 << bit, dtype=view.dtype)
            verdict = identical("y", other, x, SOURCE)
            assert not verdict.passed
            assert verdict.where == index
            assert verdict.observed == 1


def test_identical_tells_zeros_apart() -> None:
    assert not identical("y", np.array([-0.0]), np.array([0.0]), SOURCE).passed
    assert within("y", np.array([-0.0]), np.array([0.0]), Bound(np.zeros(1), SOURCE)).passed


def test_identical_counts_what_differs() -> None:
    x = np.zeros((10,), dtype=np.uint8)
    other = x.copy()
    other[[3, 7]] = 1
    verdict = identical("codes", other, x, SOURCE)
    assert (verdict.observed, verdict.bound, verdict.where) == (2, 0, (3,))


def test_identical_does_not_change_what_it_was_given() -> None:
    x = np.arange(6, dtype=np.uint8)
    identical("y", x, x, SOURCE)
    np.testing.assert_array_equal(x, np.arange(6))


def test_at_most() -> None:
    assert at_most("exp as declared", 8.0, 8.0, "ulp", SOURCE).passed
    assert not at_most("exp as declared", float(np.nextafter(8.0, 9)), 8.0, "ulp", SOURCE).passed
    assert not at_most("exp as declared", float("nan"), 8.0, "ulp", SOURCE).passed
    verdict = at_most("exp as declared", 2.0, 8.0, "ulp", SOURCE)
    assert (verdict.controls.applied, verdict.controls.caught) == (1, 1)
    assert verdict.headroom == 4


def test_an_infinite_limit_of_one_number_is_not_trusted() -> None:
    assert at_most("y", 1.0, float("inf"), "ulp", SOURCE).controls.missed == ("just above",)


def test_rows_are_judged_each_by_its_own_limit() -> None:
    expected = np.array([[1000.0, 0.0], [0.001, 0.0]])
    observed = expected + np.array([[0.5, 0.0], [0.0, 0.0005]])
    verdict = rows("y", observed, expected, np.array([1.0, 0.0004]), SOURCE)
    assert not verdict.passed
    assert verdict.where == (1, 1)
    assert (verdict.got, verdict.wanted) == (0.0005, 0.0)
    assert verdict.observed == pytest.approx(0.0005)
    assert verdict.bound == 0.0004
    assert verdict.relative == pytest.approx(0.5), "the largest of any row, not that of the whole tensor"
    assert rows("y", observed, expected, np.array([1.0, 0.0006]), SOURCE).passed


def test_a_row_that_must_be_zero_is_zero_to_the_last_bit() -> None:
    zeros = np.zeros((2, 3))
    limit = np.zeros(2)
    assert rows("y", zeros, zeros, limit, SOURCE).passed
    assert rows("y", zeros, zeros, limit, SOURCE).relative == 0
    wrong = zeros.copy()
    wrong[1, 2] = 5e-324
    verdict = rows("y", wrong, zeros, limit, SOURCE)
    assert not verdict.passed
    assert verdict.relative == np.inf
