"""Bounds: what is legal stays inside, what is just past them does not, and what each of them can't see is said."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from contract.worker.capabilities import Elementary
from parity.checks import strategies
from parity.judge import bounds
from parity.reference import products
from parity.reference.products import Sums

F32 = np.float32
U32 = 2.0**-24


def sequential(terms: np.ndarray) -> np.ndarray:
    """One after the other along the last axis; cumsum does not pair."""
    return np.cumsum(terms, axis=-1, dtype=F32)[..., -1]


def backwards(terms: np.ndarray) -> np.ndarray:
    return sequential(terms[..., ::-1])


def shuffled(terms: np.ndarray) -> np.ndarray:
    return sequential(terms[..., np.random.default_rng(5).permutation(terms.shape[-1])])


def ascending(terms: np.ndarray) -> np.ndarray:
    return sequential(np.take_along_axis(terms, np.argsort(np.abs(terms), axis=-1), axis=-1))


def pairwise(terms: np.ndarray) -> np.ndarray:
    while terms.shape[-1] > 1:
        odd = terms[..., 2 * (terms.shape[-1] // 2) :]
        halves = terms[..., 0 : 2 * (terms.shape[-1] // 2) : 2] + terms[..., 1::2]
        terms = np.concatenate([halves, odd], axis=-1)
    return terms[..., 0]


def blocked(terms: np.ndarray) -> np.ndarray:
    """Eight lanes, as a vector register has."""
    padded = np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, -terms.shape[-1] % 8)])
    return pairwise(np.cumsum(padded.reshape(*padded.shape[:-1], -1, 8), axis=-2, dtype=F32)[..., -1, :])


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    order.__name__: order for order in (sequential, backwards, shuffled, ascending, pairwise, blocked)
}


def terms_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 products [M, N, K], each rounded once."""
    return a[:, None, :] * b.T[None, :, :]


def fused(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One rounding a term: a float32 product is exact in float64, so the one double rounding is of the sum (2^-53, then 2^-24)."""
    total = np.zeros((a.shape[0], b.shape[1]), dtype=F32)
    for k in range(a.shape[1]):
        total = (total.astype(np.float64) + a[:, k : k + 1].astype(np.float64) * b[k].astype(np.float64)).astype(F32)
    return total


def operands(kind: str, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, k])
    return tuple(strategies.VALUES[kind](rng, shape).astype(F32) for shape in ((3, k), (k, 4)))  # type: ignore[return-value]


def ratio(y: np.ndarray, exact: Sums, dtype: str = "float32") -> float:
    """The largest error, in units of the bound."""
    return float(np.max(np.abs(y.astype(np.float64) - exact.value) / bounds.sums(exact, dtype).limit))


@pytest.mark.parametrize("k", [1, 2, 3, 64, 257, 4096])
@pytest.mark.parametrize("kind", strategies.VALUES)
def test_every_order_of_summation_is_legal(kind: str, k: int) -> None:
    for seed in range(3):
        a, b = operands(kind, k, seed)
        exact = products.product(a, b)
        got = {name: order(terms_of(a, b)) for name, order in ORDERS.items()} | {"fused": fused(a, b), "blas": a @ b}
        worst = {name: ratio(y, exact) for name, y in got.items()}
        assert max(worst.values()) <= 1, (seed, worst)


def test_flushing_to_zero_is_legal() -> None:
    """A device may replace every result below the smallest normal by zero."""
    tiny = np.finfo(F32).smallest_normal
    for k in (1, 7, 300):
        a, b = operands("subnormal products", k, k)
        terms = terms_of(a, b)
        total = np.zeros(terms.shape[:2], dtype=F32)
        for index in range(k):
            term = np.where(np.abs(terms[..., index]) < tiny, F32(0), terms[..., index])
            total = total + term
            total = np.where(np.abs(total) < tiny, F32(0), total)
        assert ratio(total, products.product(a, b)) <= 1


def test_all_equal_data_comes_near_the_bound() -> None:
    """Why the bound is not sqrt(k) u: rounding is systematic here, and grows with k."""
    k = 4096
    a, b = np.full((1, k), F32(1.1)), np.full((k, 1), F32(0.3))
    exact = products.product(a, b)
    error = abs(float(sequential(terms_of(a, b))[0, 0]) - float(exact.value[0, 0])) / float(exact.magnitude[0, 0])
    assert error > 5 * math.sqrt(k) * U32
    assert error < bounds.gamma(k, U32)


@pytest.mark.parametrize("k", [1, 2, 64, 4096])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_is_what_the_book_says(k: int, dtype: str) -> None:
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((2, k)), rng.standard_normal((k, 3))
    u = {"float32": 2.0**-24, "float64": 2.0**-53}[dtype]
    limit = bounds.sums(products.product(a, b), dtype).limit
    textbook = k * u / (1 - k * u) * (np.abs(a) @ np.abs(b)) + k * np.finfo(dtype).smallest_normal
    np.testing.assert_array_less(textbook * (1 - 1e-12), limit)
    np.testing.assert_array_less(limit, textbook * (1 + 1e-6))


def test_a_bias_is_a_term() -> None:
    rng = np.random.default_rng(1)
    a, b, bias = (rng.standard_normal(shape) for shape in ((2, 5), (5, 3), (3,)))
    limit = bounds.sums(products.product(a, b, bias), "float32").limit
    assert np.all(limit > 6 * U32 * (np.abs(a) @ np.abs(b) + np.abs(bias)))


@pytest.mark.parametrize("k", [1, 2, 7, 16])
def test_a_bfloat16_operand_is_seen_in_short_sums(k: int) -> None:
    """bfloat16's 2^-9 per term against k 2^-24: a short sum shows it by a wide factor."""
    a, b = operands("gaussian", k, 3)
    cast = a.astype(ml_dtypes.bfloat16).astype(F32)
    assert ratio(cast @ b, products.product(a, b)) > 30


def random_operands(k: int, seed: int, shape: tuple[int, int] = (4, 7)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, k])
    return rng.standard_normal((shape[0], k)).astype(F32), rng.standard_normal((k, shape[1])).astype(F32)


def root_mean_square(y: np.ndarray, exact: Sums, false_alarm: float) -> float:
    """In units of the limit."""
    scale, limit, _ = bounds.sums_root_mean_square(exact, "float32", false_alarm)
    return float(np.sqrt(np.mean(((y.astype(np.float64) - exact.value) / scale) ** 2))) / limit


@pytest.mark.parametrize("k", [1024, 4096])
@pytest.mark.parametrize("operand", ["a", "b", "sum"])
def test_a_bfloat16_cast_that_the_hard_bound_may_miss_is_seen_by_the_root_mean_square(k: int, operand: str) -> None:
    a, b = random_operands(k, 0)
    exact = products.product(a, b)

    def cast(x: np.ndarray) -> np.ndarray:
        return x.astype(ml_dtypes.bfloat16).astype(F32)

    y = {"a": lambda: cast(a) @ b, "b": lambda: a @ cast(b), "sum": lambda: cast(a @ b)}[operand]()
    # A cast operand shows as 2^-9 sqrt(k) against a limit of about 2^-24 k, a cast sum as 2^-9 against the same.
    assert root_mean_square(y, exact, 1e-12) > 15
    if k == 4096:
        assert ratio(y, exact) <= 1, "the hard bound sees it too: say so in the documents"


@pytest.mark.parametrize("k", [1024, 2047])
def test_a_bfloat16_cast_breaks_odd_integers(k: int) -> None:
    """13 bits do not fit into bfloat16's 8; the sums fit into float32's 24, in any order."""
    rng = np.random.default_rng(k)
    a, b = strategies.odd_integers(rng, (3, k), 13).astype(F32), strategies.signs(rng, (k, 4)).astype(F32)
    exact = products.product(a, b).value
    assert np.abs(exact).max() < 2**24
    assert np.abs(a).max() < 2**13
    assert np.all(a % 2 == 1)
    for order in ORDERS.values():
        np.testing.assert_array_equal(order(terms_of(a, b)), exact)
    assert np.any(a.astype(ml_dtypes.bfloat16).astype(F32) @ b != exact)
    assert np.any(b.T @ a.astype(ml_dtypes.bfloat16).astype(F32).T != exact.T)


def test_a_float32_cast_inside_a_float64_product_breaks_odd_integers() -> None:
    rng = np.random.default_rng(2)
    a, b = strategies.odd_integers(rng, (3, 2047), 42), strategies.signs(rng, (2047, 4))
    assert np.abs(products.product(a, b).magnitude).max() < 2**53
    assert np.any(a.astype(F32).astype(np.float64) @ b != a @ b)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [1, 2, 64, 257, 4096])
def test_the_root_mean_square_of_legal_orders_stays_well_inside(order: str, k: int) -> None:
    worst = 0.0
    for seed in range(20):
        a, b = random_operands(k, seed)
        worst = max(worst, root_mean_square(ORDERS[order](terms_of(a, b)), products.product(a, b), 1e-9))
    assert worst < 0.75
    assert worst > 0.002, "a limit that is thousands of times too wide would see nothing"


@pytest.mark.parametrize(("k", "shape"), [(64, (1, 1)), (64, (3, 5)), (257, (2, 6)), (1024, (2, 2))])
def test_the_false_alarm_rate_is_not_exceeded(k: int, shape: tuple[int, int]) -> None:
    """2,000 draws at one in a hundred: 20 alarms expected at most; 40 would come by chance once in 20,000."""
    false_alarm, draws = 1e-2, 2000
    alarms = 0
    for seed in range(draws):
        a, b = random_operands(k, seed, shape)
        alarms += root_mean_square(sequential(terms_of(a, b)), products.product(a, b), false_alarm) > 1
    assert alarms < 40


@pytest.mark.parametrize("elements", [1, 15, 300])
def test_errors_as_large_as_the_scale_alarm_as_often_as_declared(elements: int) -> None:
    """The limit itself is neither loose nor tight: normal errors of exactly the scale exceed it with the declared probability."""
    rng = np.random.default_rng(elements)
    a = rng.standard_normal((1, 8))
    exact = products.product(a, rng.standard_normal((8, elements)))
    scale, limit, _ = bounds.sums_root_mean_square(exact, "float32", 0.05)
    errors = rng.standard_normal((20000, elements))
    assert scale.shape == (1, elements)
    rate = np.mean(np.sqrt(np.mean(errors**2, axis=1)) > limit)
    assert 0.04 < rate < 0.06


def test_the_scale_is_that_of_random_order() -> None:
    """The partial sums' mean square over all orders of one element's terms, by simulation."""
    rng = np.random.default_rng(9)
    p = rng.standard_normal(12) + 0.4
    exact = products.product(p[None, :], np.ones((12, 1)))
    scale, _, _ = bounds.sums_root_mean_square(exact, "float32", 0.5)
    partial = np.mean([np.sum(np.cumsum(rng.permutation(p))[1:] ** 2) for _ in range(20000)])
    assert float(scale[0, 0]) == pytest.approx(U32 * math.sqrt(partial + np.sum(p**2)), rel=0.01)


def test_a_smaller_false_alarm_probability_raises_the_limit() -> None:
    exact = products.product(*random_operands(16, 0))
    limits = [bounds.sums_root_mean_square(exact, "float32", p)[1] for p in (1e-1, 1e-3, 1e-9)]
    assert limits == sorted(limits)
    assert len(set(limits)) == 3


def test_a_sum_too_long_for_its_dtype_has_no_bound() -> None:
    with pytest.raises(ValueError, match="wider accumulator"):
        bounds.gamma(256, 2.0**-8)
    assert bounds.gamma(255, 2.0**-8) == pytest.approx(255)


@pytest.mark.parametrize(("dtype", "u"), [("float32", 2.0**-24), ("float64", 2.0**-53), ("float16", 2.0**-11)])
def test_unit_roundoffs(dtype: str, u: float) -> None:
    """Half the spacing at 1."""
    assert bounds.unit_roundoff(dtype) == u


def test_smallest_normals() -> None:
    assert bounds.smallest_normal("float32") == 2.0**-126
    assert bounds.smallest_normal("float64") == 2.0**-1022


def test_an_elementary_bound_is_in_ulps_of_the_exact_value() -> None:
    declared = Elementary(function="exp", dtype="float32", low=-1, high=0, ulp=3, absolute=1e-9)
    limit = bounds.elementary(declared, np.array([2.0**-23, 2.0**-149])).limit
    np.testing.assert_array_equal(limit, [3 + 1e-9 * 2.0**23, 3 + 1e-9 * 2.0**149])  # a quotient by a power of two is exact
