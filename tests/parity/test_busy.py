"""Where a run's time went."""

from __future__ import annotations

from parity.busy import Meter, busy_seconds


def test_what_overlaps_counts_once() -> None:
    """Whichever stack was busy; also what was told twice."""
    assert busy_seconds({"one": [(0, 10), (0, 10)], "two": [(5, 12), (20, 21)]}) == 13e-9


def test_a_check_has_what_was_added_while_it_was_asked() -> None:
    meter = Meter(busy={"one": [(0, 5)], "two": []})
    with meter.check("a.exp"):
        meter.busy["one"].append((7, 9))
    with meter.check("a.log"):
        meter.busy["two"].append((9, 19))
        with meter.judging():
            pass
    assert {name: timing.by_stack for name, timing in meter.checks.items()} == {
        "a.exp": {"one": 2e-9, "two": 0.0}, "a.log": {"one": 0.0, "two": 10e-9},
    }  # fmt: skip
    assert meter.checks["a.exp"].judging == 0.0
    assert 0.0 < meter.checks["a.log"].judging <= meter.checks["a.log"].wall
