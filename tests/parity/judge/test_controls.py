"""Negative controls: each kind is caught on ordinary data, and a comparison that can't fail is found out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from parity.judge import controls
from parity.judge.bounds import Bound
from parity.judge.verdict import within

X = np.random.default_rng(3).standard_normal((7, 5))
KINDS = ("rolled", "negated", "shuffled", "just above")


def differs(candidate: np.ndarray) -> bool:
    return not np.array_equal(candidate, X)


def run(passes: Callable[[np.ndarray], bool], observed: np.ndarray = X) -> controls.Outcome:
    above = observed.copy()
    above.reshape(-1)[0] += 1e-3
    return controls.run(passes, observed, surely_wrong=lambda candidate: bool(np.any(candidate != observed)), just_above=above)


def test_a_comparison_that_can_fail_catches_all() -> None:
    assert run(lambda candidate: not differs(candidate)) == controls.Outcome(applied=4, caught=4, missed=())


def test_a_comparison_that_always_passes_misses_all() -> None:
    assert run(lambda candidate: True) == controls.Outcome(applied=4, caught=0, missed=KINDS)


BLIND: dict[str, tuple[Callable[[np.ndarray], object], set[str]]] = {
    "signs": (np.abs, {"negated"}),
    "order": (lambda x: np.sort(x.reshape(-1)), {"rolled", "shuffled"}),
    "the mean": (lambda x: round(float(x.mean()), 9), {"rolled", "shuffled"}),
    "the small": (lambda x: np.round(x, 1), {"just above"}),
    "the first": (lambda x: x.reshape(-1)[1:], {"just above"}),
}
"""What a broken comparison looks at -> the controls that it misses for that."""


@pytest.mark.parametrize("blind_to", BLIND)
def test_a_comparison_that_is_blind_to_something_misses_that_control(blind_to: str) -> None:
    seen, missed = BLIND[blind_to]
    outcome = run(lambda candidate: bool(np.array_equal(np.asarray(seen(candidate)), np.asarray(seen(X)))))
    assert set(outcome.missed) == missed
    assert outcome.applied == 4
    assert outcome.caught == 4 - len(missed)


def test_a_comparison_that_failed_needs_no_controls() -> None:
    assert run(lambda candidate: False) == controls.NONE


def test_a_constant_tensor_can_not_be_rolled_or_shuffled() -> None:
    constant = np.full((4, 4), 2.5)
    outcome = run(lambda candidate: bool(np.array_equal(candidate, constant)), constant)
    assert outcome == controls.Outcome(applied=2, caught=2, missed=())


def test_zeros_can_only_be_moved() -> None:
    outcome = run(lambda candidate: bool(np.array_equal(candidate, np.zeros(6))), np.zeros(6))
    assert outcome == controls.Outcome(applied=1, caught=1, missed=())


def test_a_control_that_is_legal_is_not_applied() -> None:
    """Neighbours that differ by less than the bound may stand in each other's place."""
    near = 1 + 1e-6 * X
    verdict = within("y", near, near, Bound(np.full(X.shape, 1e-3), "a test"))
    assert verdict.controls == controls.Outcome(applied=2, caught=2, missed=())


def test_whether_a_control_applies_is_not_for_the_comparison_to_say() -> None:
    """A limit that is wrong on one element only: the elements beside it still make the control sure."""
    limit = np.full(X.shape, 1e-3)
    limit[0, 0] = 1e6
    assert within("y", X, X, Bound(limit, "a test")).controls.applied == 4


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64"])
def test_each_kind_is_caught_in_each_dtype(dtype: str) -> None:
    x = (np.arange(35) % 16 + 1).astype(dtype)
    outcome = controls.run(
        lambda candidate: bool(np.array_equal(candidate, x)), x,
        surely_wrong=lambda candidate: not np.array_equal(candidate, x), just_above=x + x.dtype.type(1),
    )  # fmt: skip
    assert outcome == controls.Outcome(applied=4, caught=4, missed=())


def test_a_large_tensor_is_changed_in_its_head_only() -> None:
    large = np.random.default_rng(0).standard_normal(controls.WINDOW + 1000)
    seen: list[np.ndarray] = []

    def passes(candidate: np.ndarray) -> bool:
        seen.append(candidate)
        return candidate is large

    controls.run(passes, large, surely_wrong=lambda candidate: True, just_above=large + 1)
    for candidate in seen[1:4]:
        np.testing.assert_array_equal(candidate[controls.WINDOW :], large[controls.WINDOW :])
        assert np.any(candidate[: controls.WINDOW] != large[: controls.WINDOW])


def test_outcomes_add() -> None:
    one, other = controls.Outcome(applied=3, caught=2, missed=("rolled",)), controls.Outcome(applied=1, caught=1, missed=())
    assert one + other == controls.Outcome(applied=4, caught=3, missed=("rolled",))
    assert controls.NONE + one == one
