"""Each rule fails where its source says: held against torch itself where torch has it, else against worked numbers."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch

from parity.mutants.baselines import rules

RULES = {rule.name: rule for rule in rules.EVERY}
SIZES = (0.0, 1e-12, 1e-5, 0.9e-5, 1.1e-5, 0.9e-3, 1.1e-3, 0.5, 1.0, -1.0, 3.0, 1e3, 1e9, float("inf"), -float("inf"), float("nan"))
RELATIVE = (0.0, 1e-7, 1.2e-6, 1.4e-6, 0.9e-5, 1.1e-5, 0.9e-3, 1.1e-3, 1.5e-2, 1.7e-2, 0.3)
"""On either side of every rule's limits."""


def pairs(dtype: np.dtype) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every size with every distance from it, relative and absolute, one element each."""
    with np.errstate(over="ignore"):  # 1e9 is infinite in float16
        return [
            (np.array([first]).astype(dtype), np.array([size]).astype(dtype))
            for size in SIZES
            for apart in RELATIVE
            for first in (size * (1 + apart), size + apart)
        ]


def as_torch(array: np.ndarray) -> torch.Tensor:
    wide = torch.from_numpy(array.astype(np.float64) if array.dtype == ml_dtypes.bfloat16 else array)
    return wide.to(torch.bfloat16) if array.dtype == ml_dtypes.bfloat16 else wide


def torch_fails(first: np.ndarray, second: np.ndarray) -> bool:
    try:
        torch.testing.assert_close(as_torch(first), as_torch(second))
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_assert_close_is_torchs(dtype: type) -> None:
    found = [(RULES["assert_close"].sees(*pair), torch_fails(*pair)) for pair in pairs(np.dtype(dtype))]
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]
    assert {theirs for _, theirs in found} == {True, False}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_integers_must_be_equal_to_assert_close(dtype: type) -> None:
    one = np.array([1, 200], dtype)
    assert not RULES["assert_close"].sees(one, one.copy())
    assert RULES["assert_close"].sees(one, one + one.dtype.type(1))
    assert torch_fails(one, one + one.dtype.type(1))


def test_atol_is_torch_allclose() -> None:
    found = [
        (RULES["atol 1e-3"].sees(*pair), not torch.allclose(as_torch(pair[0]), as_torch(pair[1]), atol=1e-3))
        for pair in pairs(np.dtype(np.float32))
    ]
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]


def test_rtol_is_numpys_assert_allclose_by_which_torch_onnx_compares() -> None:
    def fails(first: np.ndarray, second: np.ndarray) -> bool:
        try:
            np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-7)
        except AssertionError:
            return True
        return False

    found = [(RULES["rtol 1e-3"].sees(*pair), fails(*pair)) for pair in pairs(np.dtype(np.float64))]
    assert [ours for ours, _ in found] == [theirs for _, theirs in found]


@pytest.mark.parametrize(
    ("first", "second", "fails"),
    [
        (1.5, 1.0, True),
        (1e-6, 2e-6, False),  # far apart relatively, by less than 1e-5
        (1000.001, 1000.0, False),  # by 1e-3, which is 1e-6 of it
        (2e-5, 0.0, True),  # a zero counts as 2.2e-16
        (9e-6, 0.0, False),
        (float("nan"), 1.0, True),
        (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True),  # unless infinities_compare_equal, which is off
        (3.0, 3.0, False),
    ],
)
def test_polygraphy_fails_only_where_both_errors_are_over_its_limits(first: float, second: float, fails: bool) -> None:
    assert RULES["Polygraphy"].sees(np.array([0.0, first]), np.array([0.0, second])) is fails


@pytest.mark.parametrize(
    ("step", "fails"),
    [(2.0, False), (2.0 * 1.0099, False), (2.0 * 1.0101, True), (2.0 * 0.98, True), (float("nan"), True), (float("inf"), True)],
)
def test_loss_curves_lie_over_one_percent_apart(step: float, fails: bool) -> None:
    assert RULES["loss curves"].sees(np.array([3.0, step, 1.0]), np.array([3.0, 2.0, 1.0])) is fails


def test_losses_of_zero_are_held_absolutely_and_a_step_without_a_loss_is_no_difference() -> None:
    curve = RULES["loss curves"]
    assert not curve.sees(np.array([9e-7]), np.array([0.0]))
    assert curve.sees(np.array([2e-6]), np.array([0.0]))
    assert not curve.sees(np.array([float("nan"), 1.0]), np.array([float("nan"), 1.0]))


@pytest.mark.parametrize("rule", rules.EVERY, ids=lambda rule: rule.name)
@pytest.mark.parametrize("change", [lambda y: y.reshape(-1), lambda y: y.astype(np.float16), lambda y: y[:1]])
def test_another_shape_or_dtype_is_a_difference(rule: rules.Rule, change: Callable[[np.ndarray], np.ndarray]) -> None:
    one = np.ones((2, 3), np.float32)
    assert rule.sees(change(one), one)
    assert not rule.sees(one, one.copy())
