"""One confidence for a whole run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from parity.judge import confidence


def test_a_run_spends_no_more_than_it_has() -> None:
    for comparisons in (1, 7, 10_000):
        assert comparisons * confidence.per_comparison(comparisons) == pytest.approx(confidence.FALSE_ALARM)


def test_the_confidence_is_one_in_a_million() -> None:
    """Stated in every record; a change of it is a decision, not a detail."""
    assert confidence.FALSE_ALARM == 1e-6


@pytest.mark.parametrize("comparisons", [0, -1])
def test_nothing_to_divide_over(comparisons: int) -> None:
    with pytest.raises(ValueError, match=f"{comparisons} statistical comparisons; it must have at least 1"):
        confidence.per_comparison(comparisons)


@given(examples=st.integers(1, 20_000), share=st.floats(0, 1))
def test_at_the_bound_so_few_alarms_have_the_chance_that_is_claimed(examples: int, share: float) -> None:
    alarms = int(share * examples)
    rate = confidence.clopper_pearson(alarms, examples)
    if alarms == examples:
        assert rate == 1
    else:
        assert binom.cdf(alarms, examples, rate) == pytest.approx(1 - confidence.CONFIDENCE, rel=1e-6)


def test_no_alarm_in_ten_thousand_examples() -> None:
    """1 - 0.05^(1 / n), of which the rule of three, 3 / n, is the first term."""
    assert confidence.clopper_pearson(0, 10_000) == pytest.approx(-math.expm1(math.log(0.05) / 10_000))


@pytest.mark.parametrize(("alarms", "examples"), [(0, 0), (2, 1), (-1, 5)])
def test_alarms_that_can_not_be(alarms: int, examples: int) -> None:
    with pytest.raises(ValueError, match=f"{alarms} alarms in {examples} examples; allowed"):
        confidence.clopper_pearson(alarms, examples)
