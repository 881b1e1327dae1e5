"""One confidence for a whole run."""

from __future__ import annotations

import pytest

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
