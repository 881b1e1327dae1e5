"""Running error analysis: each operation's bound holds for the worst operands and roundings, is reached, and keeps what is exact."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from contract.worker.capabilities import Function
from parity.reference import running_error
from parity.reference.running_error import REFERENCE, Arithmetic, Computed
from tests.parity.judge.legal_arithmetic import DECLARED, TINY, ULP, Number, Rounding, U

ONE = Arithmetic("float32", DECLARED)
SHAPE = (4, 6)


def inside(got: np.ndarray, bound: Computed) -> bool:
    """Up to what float64, in which these tests compare, rounds itself: 8 of its roundings of the largest, 2^-26 of a float32's."""
    return bool(np.all(np.abs(got - bound.value) <= bound.error + 2.0**-50 * bound.size.max()))


def rounding(side: int, order: str = "forward", *, flush: bool = False) -> Rounding:
    return Rounding(side, order, False, flush, np.random.default_rng(0))


def operands(seed: int, *, positive: bool = False, scale: float = 1.0, relative: float = 1e-5) -> tuple[Computed, np.ndarray]:
    """A value that is known to some error, and one at the edge of that."""
    rng = np.random.default_rng(seed)
    value = rng.standard_normal(SHAPE) * scale
    value = np.abs(value) + scale / 10 if positive else value
    error = np.abs(value) * relative * rng.uniform(0, 1, SHAPE)
    return Computed(value, error, ONE), value + rng.choice([-1.0, 1.0], SHAPE) * error


BINARY: dict[str, Callable[..., object]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "product of matrices": lambda a, b: a.matmul(b.turned()) if isinstance(a, Number) else a @ b.swapaxes(-1, -2),
    "reciprocal and product": lambda a, b: a * b.reciprocal() if isinstance(a, Number) else a / b,
}


@pytest.mark.parametrize("name", list(BINARY))
@pytest.mark.parametrize("side", [-1, 0, 1])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, 1e-3, 1e-18, 1e6]), flush=st.booleans())
def test_operations_of_two(side: int, name: str, seed: int, scale: float, flush: bool) -> None:
    (a, a_moved), (b, b_moved) = operands(seed, scale=scale), operands(seed + 1, scale=scale)
    of = rounding(side, flush=flush)
    bound = BINARY[name](a, b)
    got = BINARY[name](Number(a_moved, of), Number(b_moved, of))
    assert isinstance(bound, Computed)
    assert isinstance(got, Number)
    assert inside(got.value, bound)


UNARY: dict[Function, tuple[Callable[[Computed], Computed], Callable[[np.ndarray], np.ndarray]]] = {
    "sqrt": (Computed.sqrt, np.sqrt),
    "exp": (Computed.exp, np.exp),
    "log": (Computed.log, np.log),
    "tanh": (Computed.tanh, np.tanh),
    "erf": (Computed.erf, erf),
    "sin": (Computed.sin, np.sin),
    "cos": (Computed.cos, np.cos),
}


@pytest.mark.parametrize("function", list(UNARY))
@pytest.mark.parametrize("side", [-1, 1])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, 1e-4, 20.0]), relative=st.sampled_from([0.0, 1e-6, 0.1]))
def test_functions(side: int, function: Function, seed: int, scale: float, relative: float) -> None:
    """The operand at the edge of its error, and the function off by all that is declared; tanh and erf are 1 where they round to it."""
    x, moved = operands(seed, positive=function in ("sqrt", "log"), scale=scale, relative=relative)
    bound_of, of = UNARY[function]
    exact = of(moved)
    got = rounding(side).kept(exact, ulp=ULP).value
    if function in ("tanh", "erf"):
        got = np.where(1 - np.abs(exact) <= running_error.LIMIT_IN_U * U, np.sign(exact), got)
    assert inside(got, bound_of(x))


@pytest.mark.parametrize("order", ["forward", "backward", "pairwise"])
@pytest.mark.parametrize("side", [-1, 0, 1])
def test_sums_in_any_order(side: int, order: str) -> None:
    for seed in range(10):
        x, moved = operands(seed)
        bound = x.sum(-1, keepdims=True)
        got = Number(moved, rounding(side, order)).sum().value
        assert inside(got, bound)


def test_bounds_are_reached() -> None:
    """One rounding, and no more than that: a bound that allows twice what can happen sees half."""
    a, b = ONE.given(np.array([1.0 + 2.0**-23])), ONE.given(np.array([1.0 + 3 * 2.0**-23]))
    assert (a + b).error == U * (a.value + b.value)
    assert (a * b).error == U * a.value * b.value
    assert ONE.given(np.array([1.5, 2.5, 3.5])).sum(0).error == 2 * U / (1 - 2 * U) * 7.5
    assert (a @ b).error == U / (1 - U) * (a.value @ b.value) + TINY


def test_what_is_exact_stays_so() -> None:
    zero = ONE.exact(np.zeros(3))
    x = ONE.given(np.array([1.0, -2.0, 0.3]))
    for one in (zero * x, zero / x, zero + zero, zero.sum(0), zero @ x, zero.tanh(), zero.sqrt(), zero.where(np.ones(3, dtype=bool))):
        assert not one.value.any()
        assert not one.error.any(), one
    masked = x.where(np.array([True, False, True]))
    assert (masked.value[1], masked.error[1]) == (0, 0)
    assert not (x + zero).error.any(), "adding exactly nothing rounds nothing"


def test_zero_terms_are_no_terms() -> None:
    two = ONE.given(np.array([0.0, 1.5, 0.0, 2.5]))
    assert two.sum(0).error == U / (1 - U) * 4
    assert (two @ ONE.given(np.ones(4))).error == 2 * U / (1 - 2 * U) * 4 + 2 * TINY


def test_inputs_and_constants() -> None:
    assert list(ONE.given(np.array([1.0, 1e-40, 0.0])).error) == [0.0, 1e-40, 0.0]  # a device may read subnormal numbers as zero
    assert ONE.constant(0.25).error == 0
    assert ONE.constant(0.1).error == U * 0.1
    assert ONE.constant(1).error == 0
    assert ONE.exact(0.1).error == 0
    assert ONE.cast(REFERENCE.exact(0.1)).error == U * 0.1
    assert ONE.cast(REFERENCE.exact(0.5)).error == 0
    assert REFERENCE.cast(REFERENCE.exact(0.1)).error == 0


def test_overflow_has_no_bound_and_a_division_by_it_has() -> None:
    x = ONE.given(np.array([100.0]))
    with np.errstate(all="ignore"):
        assert np.isinf(x.exp().error)
        assert np.isinf((x * 1e37 * 1e37).error)
        quotient = ONE.exact(1.0) / (x.exp() + 1.0)
    assert np.isfinite(quotient.error)
    assert quotient.error >= quotient.value


def test_a_divisor_that_may_be_anything_has_no_bound() -> None:
    with np.errstate(all="ignore"):
        assert np.isinf((ONE.exact(np.ones(1)) / Computed(np.array([1.0]), np.array([1.0]), ONE)).error)
        assert np.isinf((ONE.exact(np.ones(1)) / Computed(np.array([3.0]), np.array([np.inf]), ONE)).error)


def test_power_is_that_of_an_exponential_and_exact_at_zero() -> None:
    host = Arithmetic("float64", DECLARED)
    exponent = host.exact(np.array([0.0, -0.25, -0.99]))
    power = host.power(1e4, exponent)
    assert (power.value[0], power.error[0]) == (1.0, 0.0)
    by_exponential = np.exp(exponent.value * np.log(1e4))
    assert np.all(np.abs(by_exponential - power.value) <= power.error)
    assert np.all(power.error < 1e-14 * power.value)


def test_clipped_is_exact_where_it_is_surely_outside() -> None:
    x = Computed(np.array([-1.0, -0.01, 0.5, 1.01, 3.0]), np.full(5, 0.1), ONE).clipped(0.0, 1.0)
    np.testing.assert_array_equal(x.value, [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(x.error, [0, 0.1, 0.1, 0.1, 0])


def test_capped_and_either_take_the_right_one() -> None:
    a, b = (Computed(np.ones(2), np.array(error), ONE) for error in ([1.0, 2.0], [3.0, 0.5]))
    np.testing.assert_array_equal(a.either(b).error, [3.0, 2.0])
    np.testing.assert_array_equal(a.capped(1.5).error, [1.0, 1.5])


@pytest.mark.parametrize("function", ["tanh", "erf"])
def test_near_one_a_function_is_one(function: Function) -> None:
    """In float32 tanh 20 is 1, whatever is declared; the gap to 1 is the whole error."""
    bound = UNARY[function][0](ONE.exact(np.array([20.0])))
    assert np.abs(1 - bound.value) <= bound.error
    assert bound.error <= running_error.LIMIT_IN_U * U


def test_a_float32_intermediate_is_refused() -> None:
    x = np.ones(2, dtype=np.float32)
    with pytest.raises(AssertionError, match="computes in float64"):
        Computed(x, np.zeros(2), ONE)  # type: ignore[arg-type]


def test_a_missing_declaration_is_named() -> None:
    with pytest.raises(ValueError, match=r"declares no error of tanh in float32; add it to its capabilities\.json"):
        Arithmetic("float32").given(np.ones(1)).tanh()


NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "reciprocal": lambda x: 1 / x, "tanh": np.tanh, "erf": erf, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


def points(function: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """Even and over the magnitudes, where references take a function: exp to both ends, RoPE's angles to the longest."""

    def magnitudes(low: float, high: float) -> np.ndarray:
        drawn: np.ndarray = 10.0 ** rng.uniform(np.log10(low), np.log10(high), count)
        return drawn

    sign = rng.choice([-1.0, 1.0], count)
    if function in ("sin", "cos"):
        multiples = rng.integers(1, 667_543, count) * (np.pi / 2)
        return np.concatenate([rng.uniform(0, 2**20, count), magnitudes(1e-12, 2**20), multiples, np.nextafter(multiples, 0)])
    if function == "exp":
        return np.concatenate([rng.uniform(-746, 709.7, count), magnitudes(1e-12, 700) * sign])
    if function in ("tanh", "erf"):
        return np.concatenate([rng.uniform(-7, 7, count), magnitudes(1e-12, 30) * sign, rng.uniform(0, 1, count)])
    near_one = 1 + magnitudes(1e-14, 1) * np.where(sign > 0, 1, -0.5)
    return np.concatenate([magnitudes(1e-300, 1e300), magnitudes(1e-3, 1e7), near_one])


def ulps(function: str, x: np.ndarray) -> float:
    """The largest error of NumPy's float64 function, to 160 bits."""
    exact_of = {"reciprocal": lambda one: 1 / one}.get(function) or getattr(mpmath, function)
    largest = 0.0
    with mpmath.workprec(160):
        for one, got in zip(x.tolist(), NUMPY[function](x).tolist(), strict=True):
            exact = exact_of(mpmath.mpf(one))
            largest = max(largest, float(abs(got - exact) / float(np.spacing(abs(float(exact))))))
    return largest


@pytest.mark.parametrize("function", list(NUMPY))
def test_numpys_functions_err_by_no_more_than_the_reference_says(function: Function) -> None:
    assert ulps(function, points(function, np.random.default_rng(1), 2_000)) <= REFERENCE.declaration(function)[0]


@pytest.mark.nightly
@pytest.mark.timeout(300)
@pytest.mark.parametrize("function", list(NUMPY))
def test_numpys_functions_densely(function: Function) -> None:
    assert ulps(function, points(function, np.random.default_rng(2), 40_000)) <= REFERENCE.declaration(function)[0]


def test_every_function_is_declared_and_verified() -> None:
    assert set(NUMPY) == set(running_error._NUMPY_ULP)


def test_numpys_power_errs_by_no_more_than_the_reference_says() -> None:
    exponents = np.concatenate([-np.arange(0, 128, 2) / 128, -np.random.default_rng(3).uniform(0, 1, 400)])
    for base in (1e4, 5e5):
        power = REFERENCE.power(base, REFERENCE.exact(exponents))
        with mpmath.workprec(160):
            for exponent, value, error in zip(exponents.tolist(), power.value.tolist(), power.error.tolist(), strict=True):
                assert abs(mpmath.power(base, exponent) - value) <= error
