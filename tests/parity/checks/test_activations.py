"""What the activations' checks draw."""

from __future__ import annotations

import numpy as np
import pytest

from parity.checks import activations
from tests.parity.checks.test_strategies import drawn_cases

CHECKS = {check.id: check for check in activations.CHECKS}
TINY = float(np.finfo(np.float32).smallest_normal)


def values(check: str, name: str, dtype: str) -> np.ndarray:
    return np.concatenate([case.inputs[dtype][name].reshape(-1) for case in drawn_cases(CHECKS[check], 100)])


@pytest.mark.parametrize(("check", "name"), [("a.silu", "x"), ("a.gelu", "x"), ("a.swiglu", "gate")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_values_are_drawn(check: str, name: str, dtype: str) -> None:
    x, limits = values(check, name, dtype), np.finfo(dtype)
    assert np.abs(x).max() <= 1e10
    assert np.any((np.abs(x) > 2) & (np.abs(x) < 3))
    assert np.any((x != 0) & (np.abs(x) < limits.smallest_normal))
    assert np.any((x == 0) & np.signbit(x))
    assert np.any((x == 0) & ~np.signbit(x))
    assert np.any((-x > np.log(limits.max)) & (-x < 2 * np.log(limits.max))), "e^-x overflows"
    assert np.any(np.abs(x + 1.2784645) < 1e-3), "the slope of SiLU passes through 0"
    assert np.any(np.abs(x) > 1e8)


def test_both_forms_of_gelu_are_drawn() -> None:
    for check in ("a.gelu", "a.gelu_special"):
        assert {case.attrs["approximate"] for case in drawn_cases(CHECKS[check], 30)} == {"none", "tanh"}


@pytest.mark.parametrize("check", ["a.silu_special", "a.gelu_special"])
def test_special_values_come_forward_alone_and_never_as_minus_infinity(check: str) -> None:
    for case in drawn_cases(CHECKS[check], 10):
        for tensors in case.inputs.values():
            x = tensors["x"]
            assert set(tensors) == {"x"}
            assert np.isposinf(x).sum() == np.isnan(x).sum() == 1
            assert np.isfinite(x).sum() == len(x) - 2
