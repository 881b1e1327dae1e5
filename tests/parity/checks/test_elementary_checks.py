"""Checks of elementary functions: their points lie where they should, and wrong functions, declarations and special values fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import erf

from contract.worker.capabilities import Capabilities, Elementary
from parity.checks import elementary
from parity.checks.check import Answered, Case, Check
from parity.checks.elementary_domains import DOMAINS, points
from parity.judge.verdict import Comparison
from parity.reference.elementary import DEFINITIONS

DEFINED = [(function, dtype) for function, domain in DOMAINS.items() for dtype in domain.ranges]
each_function = pytest.mark.parametrize(("function", "dtype"), DEFINED, ids=[f"{function}-{dtype}" for function, dtype in DEFINED])
CHECKS = {check.id.removeprefix("a."): check for check in elementary.CHECKS}

Compute = Callable[[np.ndarray], np.ndarray]


def grid(function: str, dtype: str, count: int = 2**12) -> np.ndarray:
    return points(function, dtype, count, np.random.default_rng(0), grid=True)


def stack(*, ulp: float = 3.0, absolute: float = 0.0, low: float | None = None) -> Capabilities:
    """Declares every function over its whole range, or from `low` on."""
    declared = [
        Elementary(
            function=function, dtype=dtype, low=DOMAINS[function].ranges[dtype][0] if low is None else low,
            high=DOMAINS[function].ranges[dtype][1], ulp=ulp, absolute=absolute,
        )
        for function, dtype in DEFINED
    ]  # fmt: skip
    values = {
        "protocol": 1,
        "lane": "research",
        "extra": "dev",
        "packages": ["numpy"],
        "devices": ["CPU"],
        "requests": [],
        "operations": {},
    }
    return Capabilities.model_validate({**values, "elementary": declared})


def nearest(function: str, x: np.ndarray) -> np.ndarray:
    """By NumPy and SciPy in float64, rounded: within 3 ulp in either dtype."""
    with np.errstate(all="ignore"):
        return np.asarray(DEFINITIONS[function].float64(x.astype(np.float64))).astype(x.dtype)


def judge(check: Check, case: Case, dtype: str, compute: Callable[[str, np.ndarray], np.ndarray], one: Capabilities) -> list[Comparison]:
    plan = next(plan for plan in check.plans if plan.dtype == dtype)
    answers = [{"y": compute(request.attrs["function"], request.tensors["x"])} for request in plan.requests(case)]
    with np.errstate(all="ignore"):
        comparisons = plan.judge(case, [Answered(stack="s", capabilities=one, answers=answers)], 1e-9)
    assert not any(comparison.controls.missed for comparison in comparisons)
    return comparisons


def small_case(function: str) -> Case:
    return elementary._case(function, {"float32": 2048, "float64": 512}, 3, grid=True)


def failing(comparisons: list[Comparison]) -> list[str]:
    return [comparison.tensor for comparison in comparisons if not comparison.passed]


@each_function
def test_points_cover_the_range_its_ends_and_its_magnitudes(function: str, dtype: str) -> None:
    domain, x = DOMAINS[function], grid(function, dtype).astype(np.float64)
    low, high = (float(np.asarray(end, dtype=dtype)) for end in domain.ranges[dtype])
    assert x.min() == low
    assert x.max() == high
    core = max(low, domain.core[0]), min(high, domain.core[1])
    assert np.histogram(x, bins=np.linspace(*core, 21))[0].min() > 10
    magnitudes = np.abs(x - domain.centre)
    smallest = np.log10(magnitudes[magnitudes > 0].min()), np.log10(magnitudes.max())
    assert np.histogram(np.log10(magnitudes[magnitudes > 0]), bins=np.linspace(*smallest, 21))[0].min() > 10
    assert low >= 0 or ((x < 0).sum() > 100 and (high <= 0 or (x > 0).sum() > 100))


@each_function
def test_subnormal_arguments_are_among_them(function: str, dtype: str) -> None:
    x, limits = grid(function, dtype), np.finfo(dtype)
    subnormal = (np.abs(x) < limits.smallest_normal) & (x != 0)
    if DOMAINS[function].normal or DOMAINS[function].ranges[dtype][0] > 0:
        assert not subnormal.any()
    else:
        assert subnormal.sum() > 20
        assert limits.smallest_subnormal in np.abs(x)
        assert 0 in x


def test_multiples_of_a_quarter_turn_are_the_nearest_numbers() -> None:
    """sin at k pi rounded to float64 is at most half an ulp of the angle: what the rounding left."""
    for function in ("sin", "cos"):
        x = grid(function, "float64", 2**13)
        y = np.abs(DEFINITIONS[function].float64(x))
        near = y < 1e-9
        assert near.sum() > 100
        assert np.sum(y[near] <= np.spacing(x[near]) / 2) > 50
        assert x[near].max() > 0.9 * 2**20


def test_points_are_the_same_for_the_same_seed() -> None:
    for function, dtype in DEFINED:
        first, second, other = (points(function, dtype, 300, np.random.default_rng(seed)) for seed in (5, 5, 6))
        np.testing.assert_array_equal(first, second)
        assert first.dtype == dtype
        assert np.mean(first != other) > 0.5


@each_function
def test_a_right_function_passes(function: str, dtype: str) -> None:
    assert not failing(judge(CHECKS[function], small_case(function), dtype, nearest, stack()))


@each_function
def test_one_answer_past_the_declaration_fails(function: str, dtype: str) -> None:
    """Moved by 7 ulp where 3 are declared and at most 3 are spent."""

    def moved(name: str, x: np.ndarray) -> np.ndarray:
        y = nearest(name, x)
        index = int(np.argmax(np.isfinite(y) & (np.abs(x) >= np.finfo(dtype).smallest_normal)))
        y[index] += 7 * np.spacing(np.abs(y[index]))
        return y

    assert failing(judge(CHECKS[function], small_case(function), dtype, moved, stack())) == ["y"]


WRONG: dict[str, tuple[str, str, Compute]] = {
    "exp as exp2(x log2 e)": ("exp", "float32", lambda x: np.exp2(x * np.float32(np.log2(np.e)))),
    "exp flushed": ("exp", "float32", lambda x: np.where(x < -87.3, np.float32(0), np.exp(x))),
    "log through log1p of a rounded x - 1 in float32": ("log", "float64", lambda x: np.log(x.astype(np.float32)).astype(np.float64)),
    "erf by Abramowitz and Stegun 7.1.26": ("erf", "float64", lambda x: _seven_digits(x)),
    "tanh as 2 sigmoid(2 x) - 1": ("tanh", "float32", lambda x: 2 / (1 + np.exp(-2 * x)) - 1),
    "angles reduced in float64 alone": ("sin", "float64", lambda x: np.sin(x - np.round(x / (2 * np.pi)) * (2 * np.pi))),
    "cos of float32 angles": ("cos", "float64", lambda x: np.cos(x.astype(np.float32)).astype(np.float64)),
    "sqrt by a reciprocal root of 12 bits": ("sqrt", "float32", lambda x: (np.sqrt(x).view(np.int32) & ~0xFFF).view(np.float32)),
    "a reciprocal without its last step": ("reciprocal", "float32", lambda x: (1 / x).astype(np.float16).astype(np.float32)),
}


def _seven_digits(x: np.ndarray) -> np.ndarray:
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-x * x))


@pytest.mark.parametrize("name", WRONG)
def test_functions_that_dependencies_really_have_fail(name: str) -> None:
    function, dtype, wrong = WRONG[name]
    with np.errstate(all="ignore"):
        assert failing(judge(CHECKS[function], small_case(function), dtype, lambda _, x: wrong(x), stack(ulp=8))) == ["y"]


def test_a_subnormal_argument_may_be_read_as_zero_and_as_nothing_else() -> None:
    """The square root of a subnormal number is large: 1e-20 in float32."""

    def flushing(instead: float) -> Callable[[str, np.ndarray], np.ndarray]:
        return lambda name, x: np.where(np.abs(x) < np.finfo(x.dtype).smallest_normal, x.dtype.type(instead), nearest(name, x))

    for function, dtype in (("sqrt", "float32"), ("sqrt", "float64"), ("tanh", "float32"), ("sin", "float64")):
        assert not failing(judge(CHECKS[function], small_case(function), dtype, flushing(0.0), stack()))
    assert failing(judge(CHECKS["sqrt"], small_case("sqrt"), "float32", flushing(1e-30), stack())) == ["y"]


def test_flushed_results_need_an_absolute_part() -> None:
    def flushing(name: str, x: np.ndarray) -> np.ndarray:
        y = nearest(name, x)
        return np.where(np.abs(y) < np.finfo(y.dtype).smallest_normal, 0, y).astype(y.dtype)

    for function in ("exp", "reciprocal"):
        assert failing(judge(CHECKS[function], small_case(function), "float32", flushing, stack())) == ["y"]
        assert not failing(judge(CHECKS[function], small_case(function), "float32", flushing, stack(absolute=2.0**-126)))


@each_function
def test_a_declaration_of_a_part_of_the_range_is_refused_by_name(function: str, dtype: str) -> None:
    low, _ = DOMAINS[function].ranges[dtype]
    narrow = stack(low=low + 1 if abs(low) < 1e6 else low / 2)
    with pytest.raises(ValueError, match=rf"s declares no error of {function} in {dtype} on \[.*\], but on \[.*\]; add it"):
        judge(CHECKS[function], small_case(function), dtype, nearest, narrow)


def test_sine_and_cosine_are_asked_in_float64_alone() -> None:
    for function in ("sin", "cos"):
        assert [plan.dtype for plan in CHECKS[function].plans] == ["float64"]
        assert set(small_case(function).inputs) == {"float64"}
    (float32, float64) = (plan.requests(special_case()) for plan in CHECKS["elementary_special"].plans)
    assert {request.attrs["function"] for request in float64} - {request.attrs["function"] for request in float32} == {"sin", "cos"}


def special_case() -> Case:
    rng = np.random.default_rng(0)
    inputs = {
        dtype: {function: elementary._special_arguments(function, rng).astype(dtype) for function, of in DEFINED if of == dtype}
        for dtype in ("float32", "float64")
    }
    return Case(name="special", inputs=inputs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_special_values_pass(dtype: str) -> None:
    case = special_case()
    for x in case.inputs[dtype].values():
        assert np.isnan(x).any()
        assert {np.inf, -np.inf} <= set(x)
        assert {True, False} == set(np.signbit(x[x == 0]))
    assert not failing(judge(CHECKS["elementary_special"], case, dtype, nearest, stack()))


NOT_SPECIAL: dict[str, tuple[str, Compute]] = {
    "NaN swallowed": ("exp", lambda x: np.exp(np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf))),
    "overflow capped": ("exp", lambda x: np.minimum(np.exp(x), np.finfo(x.dtype).max)),
    "log of a negative number": ("log", lambda x: np.log(np.abs(x))),
    "log of zero": ("log", lambda x: np.log(np.where(x == 0, np.finfo(x.dtype).smallest_normal, x))),
    "root of a negative number": ("sqrt", lambda x: np.sqrt(np.maximum(x, 0))),
    "root of negative zero": ("sqrt", lambda x: np.abs(np.sqrt(x))),
    "reciprocal of negative zero": ("reciprocal", lambda x: np.where(x == 0, np.inf, 1 / x)),
    "tanh of infinity": ("tanh", lambda x: np.sinh(x) / np.cosh(x)),
    "tanh of negative zero": ("tanh", lambda x: np.tanh(x) + 0.0),
    "erf of negative zero": ("erf", lambda x: np.sign(x) * np.abs(erf(x)) + 0.0),
    "erf of infinity": ("erf", lambda x: erf(x) * np.where(np.isinf(x), 0.5, 1.0)),
    "sin of infinity": ("sin", lambda x: np.sin(np.where(np.isinf(x), 0.0, x))),
    "cos of NaN": ("cos", lambda x: np.cos(np.nan_to_num(x))),
}


@pytest.mark.parametrize("name", NOT_SPECIAL)
def test_wrong_special_values_fail(name: str) -> None:
    function, wrong = NOT_SPECIAL[name]

    def compute(asked: str, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return wrong(x).astype(x.dtype) if asked == function else nearest(asked, x)

    for dtype in DOMAINS[function].ranges:
        found = failing(judge(CHECKS["elementary_special"], special_case(), dtype, compute, stack()))
        assert found
        assert all(function in tensor for tensor in found)
