"""The propagated bounds of cross-entropy: every legal way of computing it stays inside, and planted errors do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pytest

from contract.worker.capabilities import Elementary
from parity.checks import cross_entropy as check
from parity.judge.bounds import Bound
from parity.judge.verdict import within
from parity.reference.cross_entropy import cross_entropy
from parity.reference.running_error import REFERENCE, Arithmetic, Computed


def declare(**ulp: float) -> tuple[Elementary, ...]:
    return tuple(
        Elementary.model_validate({"function": function, "dtype": dtype, "low": -1e9, "high": 1e9, "ulp": one, "absolute": 0})
        for function, one in ulp.items()
        for dtype in ("float32", "float64")
    )


DECLARED = declare(exp=2.0, log=2.0, reciprocal=0.5)
KINDS = tuple(check.LOGITS)
SHAPES = ((1, 2), (7, 33), (16, 257), (5, 2048))
Way = Callable[["Problem"], tuple[np.ndarray, np.ndarray]]


class Problem:
    """Logits and labels, the exact answer, and elementary functions that err by up to what is declared."""

    def __init__(
        self, kind: str, shape: tuple[int, int], dtype: str, seed: int, *, reduction: str = "mean", worst: float = 0.0,
        declared: tuple[Elementary, ...] = DECLARED,
    ) -> None:  # fmt: skip
        self.rng = np.random.default_rng([seed, *shape])
        self.dtype, self.reduction, self.worst = np.dtype(dtype), reduction, worst
        self.declared = declared
        self.logits = check.LOGITS[kind](self.rng, shape).astype(dtype)
        self.labels = self.rng.integers(0, shape[1], shape[0])
        if shape[0] > 2:
            self.labels[self.rng.permutation(shape[0])[: shape[0] // 3]] = -100
        self.bar = self.dtype.type(self.rng.uniform(0.5, 2))

    def by(self, arithmetic: Arithmetic) -> dict[str, Computed]:
        tensors = {"logits": self.logits, "labels": self.labels, "loss_bar": np.asarray(self.bar)}
        return cross_entropy(tensors, {"reduction": self.reduction}, arithmetic)

    @cached_property
    def exact(self) -> dict[str, np.ndarray]:
        return {name: one.value for name, one in self.by(REFERENCE).items()}

    @cached_property
    def limits(self) -> dict[str, np.ndarray]:
        """What a stack may err by, and the reference's own error."""
        allowed, own = self.by(Arithmetic(self.dtype.name, self.declared)), self.by(REFERENCE)
        return {name: allowed[name].error + own[name].error for name in allowed}

    @property
    def rows(self) -> np.ndarray:
        return np.flatnonzero(self.labels != -100)

    @property
    def count(self) -> np.floating:
        return self.dtype.type(len(self.rows) if self.reduction == "mean" else 1)

    def exp(self, x: np.ndarray, side: int = 1) -> np.ndarray:
        return self._perturbed("exp", np.exp(x.astype(np.float64)), side)

    def log(self, x: np.ndarray) -> np.ndarray:
        return self._perturbed("log", np.log(x.astype(np.float64)))

    def _perturbed(self, function: str, exact: np.ndarray, side: int = 1) -> np.ndarray:
        """Rounded, then moved by `worst` times all that is declared less what rounding may have taken of it."""
        ulp = next(one.ulp for one in self.declared if one.function == function)
        near = exact.astype(self.dtype)
        return (near + side * self.worst * (ulp - 1) * np.spacing(np.abs(near))).astype(self.dtype)


def log_softmax(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """d - log S, and exp of it for the gradient, as torch and tinygrad do; that exp errs to the other side, which is the worst case."""
    d = p.logits - p.logits.max(axis=1, keepdims=True)
    log_probability = d - p.log(p.exp(d).sum(axis=1, keepdims=True, dtype=p.dtype))
    return loss_of(p, log_probability), gradient_of(p, p.exp(log_probability, side=-1))


def quotient(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The loss by log-softmax; the gradient's probability as e / S."""
    d = p.logits - p.logits.max(axis=1, keepdims=True)
    e = p.exp(d)
    total = np.cumsum(e, axis=1, dtype=p.dtype)[:, -1:]
    return loss_of(p, d - p.log(total)), gradient_of(p, e / total)


def loss_of(p: Problem, log_probability: np.ndarray) -> np.ndarray:
    each = -log_probability[p.rows, p.labels[p.rows]]
    return np.asarray(np.cumsum(each, dtype=p.dtype)[-1] / p.count)


def gradient_of(p: Problem, probability: np.ndarray) -> np.ndarray:
    one_hot = np.zeros_like(probability)
    one_hot[p.rows, p.labels[p.rows]] = 1
    gradient = (probability - one_hot) * (p.bar / p.count)
    gradient[p.labels == -100] = 0
    return gradient


def ratios(p: Problem, way: Way) -> tuple[float, float]:
    """The largest error of loss and gradient, in units of their bounds; an error where the bound is zero is infinite."""
    return ratios_of(p, *way(p))


def ratios_of(p: Problem, loss: np.ndarray, gradient: np.ndarray) -> tuple[float, float]:
    exact, limits = p.exact, p.limits
    return _ratio(loss, exact["loss"], limits["loss"]), _ratio(gradient, exact["logits_grad"], limits["logits_grad"])


def _ratio(got: np.ndarray, exact: np.ndarray, limit: np.ndarray) -> float:
    error = np.abs(got.astype(np.float64) - exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(error == 0, 0.0, error / limit)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [log_softmax, quotient])
def test_every_legal_way_stays_inside(way: Way, kind: str, shape: tuple[int, int], dtype: str) -> None:
    for seed, reduction in enumerate(("sum", "mean")):
        p = Problem(kind, shape, dtype, seed, reduction=reduction)
        for p.worst in (0.0, 1.0, -1.0):
            loss, gradient = ratios(p, way)
            assert loss <= 1, (p.worst, reduction)
            assert gradient <= 1, (p.worst, reduction)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_is_not_absurdly_wide(dtype: str) -> None:
    """On ordinary logits the error that is really made is at least a thousandth of what is allowed."""
    seen = [ratios(Problem("gaussian", (16, 257), dtype, seed, worst=1.0), log_softmax) for seed in range(5)]
    assert max(loss for loss, _ in seen) > 1e-3
    assert max(gradient for _, gradient in seen) > 1e-2


@pytest.mark.parametrize("way", [log_softmax, quotient])
@pytest.mark.parametrize(("exp", "log"), [(60.0, 1.0), (1.0, 60.0)])
def test_each_declared_error_is_propagated_and_no_more_than_that(way: Way, exp: float, log: float) -> None:
    """One function errs by all of 60 ulp, to one side: inside, and not far inside, so that the bound has no room for more."""
    declared = declare(exp=exp, log=log, reciprocal=0.5)
    seen = [
        ratios(Problem(kind, shape, "float32", seed, worst=worst, declared=declared), way)
        for kind in ("all equal", "gaussian")
        for shape in SHAPES[:3]
        for seed in range(3)
        for worst in (1.0, -1.0)
    ]
    assert max(loss for loss, _ in seen) <= 1
    assert max(gradient for _, gradient in seen) <= 1
    assert max(loss for loss, _ in seen) > 0.4
    assert max(gradient for _, gradient in seen) > (0.4 if way is log_softmax else 0.0)


def ordinary(dtype: str = "float32", kind: str = "gaussian") -> Problem:
    return Problem(kind, (7, 33), dtype, 1)


def test_a_mean_over_all_rows_fails() -> None:
    p = ordinary()
    loss, gradient = log_softmax(p)
    wrong = p.dtype.type(len(p.rows) / len(p.labels))
    assert min(ratios_of(p, loss * wrong, gradient * wrong)) > 1e3


def test_labels_off_by_one_fail() -> None:
    p = ordinary()
    exact = log_softmax(p)
    p.labels = np.where(p.labels == -100, -100, (p.labels + 1) % 33)
    shifted = log_softmax(p)
    p.labels = np.where(p.labels == -100, -100, (p.labels - 1) % 33)
    assert max(ratios_of(p, *exact)) <= 1
    assert min(ratios_of(p, *shifted)) > 1e3


def test_an_ignored_row_must_be_exactly_zero() -> None:
    p = ordinary()
    loss, gradient = log_softmax(p)
    gradient[np.flatnonzero(p.labels == -100)[0], 0] = 1e-30
    assert ratios_of(p, loss, gradient)[1] == np.inf


@pytest.mark.parametrize("kind", ["huge"])
def test_a_forgotten_maximum_fails(kind: str) -> None:
    p = ordinary(kind=kind)
    with np.errstate(over="ignore", invalid="ignore"):
        log_probability = p.logits - np.log(np.exp(p.logits).sum(axis=1, keepdims=True))
        loss, gradient = loss_of(p, log_probability), gradient_of(p, np.exp(log_probability))
    assert not np.isfinite(loss)
    assert not np.abs(loss - p.exact["loss"]) <= p.limits["loss"]
    assert not np.all(np.abs(gradient - p.exact["logits_grad"]) <= p.limits["logits_grad"])


def test_a_forgotten_maximum_is_legal_where_nothing_overflows() -> None:
    """What the bound can't see, and need not: on small logits the other formula is as precise."""
    p = ordinary(kind="small integers")
    log_probability = p.logits - np.log(np.exp(p.logits).sum(axis=1, keepdims=True))
    assert max(ratios_of(p, loss_of(p, log_probability), gradient_of(p, np.exp(log_probability)))) < 10


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tensor", ["loss", "logits_grad"])
def test_a_relative_error_of_a_hundred_thousandth_fails(tensor: str, dtype: str) -> None:
    p = ordinary(dtype)
    loss, gradient = log_softmax(p)
    wrong = p.dtype.type(1 + 1e-5)
    if tensor == "loss":
        assert ratios_of(p, loss * wrong, gradient)[0] > 1
    else:
        assert ratios_of(p, loss, gradient * wrong)[1] > 1


def test_a_relative_error_of_half_a_millionth_is_below_what_float32_shows() -> None:
    """Eight roundings' worth: the float32 bound must allow it for the loss, and float64 sees it by a wide factor."""
    p = ordinary("float32")
    loss, gradient = log_softmax(p)
    assert ratios_of(p, loss * p.dtype.type(1 + 5e-7), gradient)[0] <= 1
    p = ordinary("float64")
    loss, gradient = log_softmax(p)
    assert min(ratios_of(p, loss * (1 + 5e-7), gradient * (1 + 5e-7))) > 1e6


def test_float32_logits_in_float64_fail() -> None:
    p = ordinary("float64")
    narrow = Problem("gaussian", (7, 33), "float32", 1)
    assert min(ratios_of(p, *(array.astype(np.float64) for array in log_softmax(narrow)))) > 1e5


@pytest.mark.parametrize("kind", KINDS)
def test_just_past_the_bound_fails_and_just_inside_passes(kind: str) -> None:
    """Through the comparison itself; float64 holds numbers to either side of a float32 bound."""
    p = Problem(kind, (7, 33), "float32", 0)
    for name, exact in p.exact.items():
        for factor, inside in ((0.999, True), (-1.001, False)):
            assert within(name, exact + factor * p.limits[name], exact, Bound(p.limits[name], "")).passed is inside


def test_a_stack_without_a_declaration_is_told_what_to_add() -> None:
    with pytest.raises(ValueError, match=r"declares no error of log in float32; add it to its capabilities\.json"):
        ordinary().by(Arithmetic("float32", declare(exp=2.0)))


def test_a_worse_declaration_widens_the_bound() -> None:
    p = ordinary()
    narrow, wider = (p.by(Arithmetic("float32", declare(exp=ulp, log=ulp, reciprocal=0.5))) for ulp in (2.0, 100.0))
    assert float(wider["loss"].error) > 2 * float(narrow["loss"].error)
    assert np.all(wider["logits_grad"].error >= narrow["logits_grad"].error)


def test_forbidden_tokens_widen_no_bound() -> None:
    """A logit of -inf is no term of the sum: the limits are those of the other tokens alone."""
    p, few = ordinary(), ordinary()
    p.labels, few.labels = (np.where(p.labels == -100, -100, p.labels % 5) for _ in range(2))
    p.logits[:, 5:] = -np.inf
    few.logits = few.logits[:, :5]
    np.testing.assert_allclose(p.limits["loss"], few.limits["loss"])
    np.testing.assert_allclose(p.limits["logits_grad"][:, :5], few.limits["logits_grad"])
    assert not p.limits["logits_grad"][:, 5:].any()
