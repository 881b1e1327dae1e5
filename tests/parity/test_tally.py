"""What a cell keeps of its examples: counts, alarms, and how tight its bounds were."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity.cells import Cell
from parity.checks import registry
from parity.checks.check import Case, Question
from parity.judge import controls
from parity.judge.verdict import Comparison
from parity.report.record import Result, Status
from parity.tally import Tally

CASE = Case(name="a case", inputs={"float32": {"x": np.zeros(1)}})


def comparison(observed: float, bound: float = 1.0, tensor: str = "y") -> Comparison:
    return Comparison(
        tensor=tensor, passed=observed <= bound, observed=observed, bound=bound, unit="absolute difference", bound_source="the test",
        where=None, controls=controls.NONE,
    )  # fmt: skip


def tally() -> Tally:
    return Tally(Cell(check=registry.CHECKS[0], question=Question.PRECISION, dtype="float32", stacks=("one",), devices=("CPU",)))


def result(one: Tally) -> Result:
    return one.result(missing="", seconds=1.0, again="", snippet="")


def test_only_drawn_examples_count_for_the_rate_of_alarms() -> None:
    one = tally()
    one.example([comparison(3.0)], CASE, drawn=False)
    for observed in (0.5, 2.0, 0.25):
        one.example([comparison(observed), comparison(0.0, tensor="z")], CASE, drawn=True)
    got = result(one)
    assert (got.examples, got.drawn, got.alarms, got.status) == (4, 3, 1, Status.FAIL)
    assert got.alarm_rate is not None
    assert 1 / 3 < got.alarm_rate < 1


def test_no_alarm_rate_without_a_draw() -> None:
    one = tally()
    one.example([comparison(0.5)], CASE, drawn=False)
    assert result(one).alarm_rate is None


def test_tightness_is_of_the_examples() -> None:
    one = tally()
    for observed in range(1, 201):
        one.example([comparison(observed / 1000)], CASE, drawn=True)
    tightness = result(one).tensors[0].tightness
    assert tightness is not None
    assert (tightness.median, tightness.most, tightness.largest) == (0.101, 0.199, 0.2)


@pytest.mark.parametrize(("observed", "bound"), [(0.0, 0.0), (1.0, 0.0)])
def test_a_bit_exact_tensor_has_no_tightness(observed: float, bound: float) -> None:
    one = tally()
    one.example([comparison(observed, bound)], CASE, drawn=True)
    assert result(one).tensors[0].tightness is None


def test_nan_has_no_tightness_and_is_an_alarm() -> None:
    one = tally()
    one.example([comparison(math.nan)], CASE, drawn=True)
    got = result(one)
    assert (got.alarms, got.tensors[0].tightness) == (1, None)


@pytest.mark.parametrize(
    ("error", "missing", "beneath"), [("a worker died", "", Status.ERROR), ("", "no time was left", Status.NOT_COVERED), ("", "", None)]
)
def test_what_a_failed_cell_has_besides_is_kept(error: str, missing: str, beneath: Status | None) -> None:
    one = tally()
    one.example([comparison(2.0)], CASE, drawn=True)
    one.error = error
    got = one.result(missing=missing, seconds=1.0, again="", snippet="")
    assert (got.status, got.beneath) == (Status.FAIL, beneath)
    right = tally()
    right.example([comparison(0.5)], CASE, drawn=True)
    assert result(right).beneath is None
