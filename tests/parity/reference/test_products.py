"""The reference of products and the linear against loops over Python's exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from parity.reference import products

RNG = np.random.default_rng(11)
A, B, Y_BAR = RNG.standard_normal((3, 5)), RNG.standard_normal((5, 2)), RNG.standard_normal((3, 2))
X, WEIGHT, BIAS = RNG.standard_normal((4, 3)), RNG.standard_normal((2, 3)), RNG.standard_normal(2)
LINEAR_BAR = RNG.standard_normal((4, 2))


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rows = [[sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(row, column, strict=True)) for column in b.T] for row in a]
    return np.array([[float(value) for value in row] for row in rows])


def close(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Within gamma_k (|a| |b|), k the inner length and the rounding of the exact sum (Higham 2002, section 3.1)."""
    roundings = (a.shape[1] + 1) * 2.0**-53
    assert np.all(np.abs(got - exact(a, b)) <= roundings / (1 - roundings) * exact(np.abs(a), np.abs(b)))


def test_matmul_and_its_gradients() -> None:
    got = products.matmul(A, B, Y_BAR)
    assert set(got) == {"y", "a_grad", "b_grad"}
    close(got["y"].value, A, B)
    close(got["a_grad"].value, Y_BAR, B.T)
    close(got["b_grad"].value, A.T, Y_BAR)
    assert [got[name].length for name in ("y", "a_grad", "b_grad")] == [5, 2, 3]


def test_the_gradients_are_those_of_the_formula() -> None:
    """d (y . y_bar) by central differences: matmul and linear are linear in each input, so a step of 1 has no error of its own."""

    def slope(value: np.ndarray, function: object) -> np.ndarray:
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            up, down = value.copy(), value.copy()
            up[index] += 1
            down[index] -= 1
            gradient[index] = (function(up) - function(down)) / 2  # type: ignore[operator]
        return gradient

    matmul = products.matmul(A, B, Y_BAR)
    np.testing.assert_allclose(matmul["a_grad"].value, slope(A, lambda a: np.sum((a @ B) * Y_BAR)), rtol=1e-12)
    np.testing.assert_allclose(matmul["b_grad"].value, slope(B, lambda b: np.sum((A @ b) * Y_BAR)), rtol=1e-12)
    linear = products.linear(X, WEIGHT, BIAS, LINEAR_BAR)
    np.testing.assert_allclose(linear["x_grad"].value, slope(X, lambda x: np.sum((x @ WEIGHT.T) * LINEAR_BAR)), rtol=1e-12)
    np.testing.assert_allclose(linear["weight_grad"].value, slope(WEIGHT, lambda w: np.sum((X @ w.T) * LINEAR_BAR)), rtol=1e-12)
    np.testing.assert_allclose(linear["bias_grad"].value, slope(BIAS, lambda b: np.sum((b + 0 * X[:, :1]) * LINEAR_BAR)), rtol=1e-12)


def test_linear_adds_the_bias_to_every_row() -> None:
    got = products.linear(X, WEIGHT, BIAS, LINEAR_BAR)
    np.testing.assert_allclose(got["y"].value, exact(X, WEIGHT.T) + BIAS, rtol=1e-13)
    assert got["y"].length == 4
    assert got["bias_grad"].value.shape == BIAS.shape
    assert got["bias_grad"].length == 4


def test_without_a_bias_there_is_no_gradient_of_it() -> None:
    got = products.linear(X, WEIGHT, None, LINEAR_BAR)
    assert "bias_grad" not in got
    assert got["y"].length == 3
    close(got["y"].value, X, WEIGHT.T)


@pytest.mark.parametrize("with_bias", [False, True])
def test_magnitudes_and_squares_are_over_the_terms(with_bias: bool) -> None:
    sums = products.product(X, WEIGHT.T, BIAS if with_bias else None)
    terms = X[:, None, :] * WEIGHT[None, :, :]
    if with_bias:
        terms = np.concatenate([terms, np.broadcast_to(BIAS[None, :, None], (4, 2, 1))], axis=2)
    np.testing.assert_allclose(sums.value, terms.sum(axis=2), rtol=1e-12)
    np.testing.assert_allclose(sums.magnitude, np.abs(terms).sum(axis=2), rtol=1e-12)
    np.testing.assert_allclose(sums.squares, (terms**2).sum(axis=2), rtol=1e-12)


def test_float32_is_widened_before_it_is_multiplied() -> None:
    a = np.array([[1 + 2.0**-12, 1]], dtype=np.float32)
    b = np.array([[1 + 2.0**-12], [1]], dtype=np.float32)
    assert float(products.product(a, b).value[0, 0]) == (1 + 2.0**-12) ** 2 + 1


def test_a_result_can_be_reshaped() -> None:
    sums = products.product(np.ones((1, 4)), np.arange(4.0)[:, None], np.zeros(1), shape=())
    assert sums.value.shape == sums.magnitude.shape == sums.squares.shape == ()
    assert float(sums.value) == 6
