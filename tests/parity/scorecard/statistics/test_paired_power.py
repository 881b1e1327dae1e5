"""Minimum detectable effect, tasks that decide, restricted means, sums by family."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.scorecard.statistics.power import minimum_detectable, tasks_that_decide
from parity.scorecard.statistics.sums import by_family, family_numbers, paired_sums, restricted


def test_minimum_detectable_published() -> None:
    """Bloom 1995 (Evaluation Review 19, 547), table 1: one-sided 0.05, power 0.8, many degrees of freedom: 2.49 standard errors."""
    assert minimum_detectable(1.0, 10_000, alpha=0.05, power=0.8) == pytest.approx(2.49, abs=0.005)


@given(
    of_tasks=st.floats(1e-7, 1e-3), of_seeds=st.floats(0, 1e-5), room=st.floats(0.005, 0.1), degrees=st.integers(2, 20),
)  # fmt: skip
def test_tasks_that_decide_do(of_tasks: float, of_seeds: float, room: float, degrees: int) -> None:
    """With so many the detectable loss is within the room, with one less it's not; where there's none, a thousand times as many fail."""
    found = tasks_that_decide(100, room=room, of_tasks=of_tasks, of_seeds=of_seeds, degrees=degrees, alpha=0.05, power=0.8)

    def detectable(tasks: float) -> float:
        return minimum_detectable(math.sqrt(of_seeds + of_tasks * 100 / tasks), degrees, alpha=0.05, power=0.8)

    if found is None:
        assert minimum_detectable(math.sqrt(of_seeds), degrees, alpha=0.05, power=0.8) >= room
        return
    assert detectable(found * (1 + 1e-9)) <= room * (1 + 1e-9)
    assert found == 100 or detectable(found - 1) > room * (1 - 1e-9)


def test_stalls_are_censored_at_the_horizon_and_not_dropped() -> None:
    """By hand: valid at 1, valid at 9 (over the horizon of 4), stalled after 2: the mean is 3, neither 5 nor (1 + 4 + 2) / 3."""
    found = restricted(np.array([True, True, False]), np.array([1.0, 9.0, 2.0]), 4.0)
    assert found.tolist() == [1.0, 4.0, 4.0]


def test_sums_by_family_leave_out_incomplete_pairs() -> None:
    names, numbers = family_numbers(["b", "a", "b"])
    assert names == ("a", "b")
    loss = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, float("nan")]])
    complete = np.array([[True, True, True], [True, True, False]])
    found = paired_sums(loss, np.ones_like(loss), complete, numbers, 2)
    assert found.loss_SG.tolist() == [[2.0, 5.0], [16.0, 8.0]]
    assert found.scale_SG.tolist() == [[1.0, 2.0], [1.0, 1.0]]
    assert float(found.estimate) == pytest.approx(31 / 5)
    assert by_family(np.ones((2, 3)), numbers, 2).tolist() == [[1.0, 2.0], [1.0, 2.0]]
