"""How long stacks were computing, and a run was judging."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from parity.report.record import CheckTiming


@dataclass
class Meter:
    """Measures a run, check by check.

    busy:   stack -> when it was busy (monotonic clock, nanoseconds); others add to it
    checks: what is known of the checks that were asked
    """

    busy: dict[str, list[tuple[int, int]]]
    checks: dict[str, CheckTiming] = field(default_factory=dict)
    _judging: float = 0.0

    @contextmanager
    def check(self, check_id: str) -> Iterator[None]:
        """All that is done for one check."""
        started, known = time.monotonic(), {name: len(found) for name, found in self.busy.items()}
        self._judging = 0.0
        yield
        by_stack = {name: busy_seconds({name: found[known[name] :]}) for name, found in self.busy.items()}
        self.checks[check_id] = CheckTiming(wall=time.monotonic() - started, by_stack=by_stack, judging=self._judging)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """A part of it that is the run's own work; one at a time."""
        started = time.monotonic()
        yield
        self._judging += time.monotonic() - started


def busy_seconds(busy: Mapping[str, Sequence[tuple[int, int]]]) -> float:
    """Seconds during which at least one stack was busy: the union of the intervals (monotonic clock, nanoseconds)."""
    total, end = 0, 0
    for start, stop in _sorted(busy):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e9


def _sorted(busy: Mapping[str, Sequence[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    return iter(sorted(interval for intervals in busy.values() for interval in intervals))
