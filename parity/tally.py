"""What is known of one cell while a run goes on, and the result that it ends as."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.cells import Cell
from parity.checks.check import Case
from parity.checks.packed import MOST_BYTES
from parity.find.fault import Fault
from parity.judge import confidence, controls
from parity.judge.verdict import Comparison
from parity.report.record import Controls, Result, Status, TensorResult, Tightness

MOST_PASSED = 32
"""So many inputs that pass are remembered, the last ones: a failure's file shows one beside it."""

NOTHING_COMPARED = "nothing was compared"
"""Why a cell is not covered that was asked and not judged."""


@dataclass
class Tally:
    """What is known of one cell so far."""

    cell: Cell
    examples: int = 0
    real: int = 0
    drawn: int = 0
    alarms: int = 0
    ratios: dict[str, list[float]] = field(default_factory=dict)
    worst: dict[str, tuple[Comparison, Case]] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    failure: tuple[Comparison, Case] | None = None
    failing: list[Case] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    passed: deque[Case] = field(default_factory=lambda: deque(maxlen=MOST_PASSED))
    reproducer: str = ""
    no_reproducer: str = ""
    error: str = ""
    missing: str = ""
    controls: controls.Outcome = controls.NONE
    _failed: set[str] = field(default_factory=set)

    def example(self, comparisons: Sequence[Comparison], case: Case, *, drawn: bool) -> None:
        """Counts one example and all that was compared on it."""
        self.examples += 1
        self.real += case.real is not None
        self.drawn += drawn
        passed = all(comparison.passed for comparison in comparisons)
        self.alarms += drawn and not passed
        self._keep_failing({comparison.tensor for comparison in comparisons if not comparison.passed}, case)
        if passed and case.nbytes <= MOST_BYTES:
            self.passed.append(case)
        for comparison in comparisons:
            self._add(comparison, case)

    def _keep_failing(self, tensors: set[str], case: Case) -> None:
        """Remembers an input that is of another kind than those that failed before, or in which a tensor fails that did not in them."""
        if tensors and (case.kind not in {one.kind for one in self.failing} or not tensors <= self._failed):
            self.failing.append(case)
            self._failed |= tensors

    def _add(self, comparison: Comparison, case: Case) -> None:
        self.ratios.setdefault(comparison.tensor, []).append(comparison.ratio)
        known = self.worst.get(comparison.tensor)
        if known is None or _tighter(comparison, known[0]):
            self.worst[comparison.tensor] = (comparison, case)
        if comparison.relative is not None:
            self.relative[comparison.tensor] = max(comparison.relative, self.relative.get(comparison.tensor, 0.0))
        if not comparison.passed and self.failure is None:
            self.failure = (comparison, case)
        self.controls += comparison.controls
        if comparison.controls.missed and not self.error:
            self.error = f"{comparison.tensor}: the comparison accepted a negative control ({', '.join(comparison.controls.missed)})"

    def result(self, *, missing: str, seconds: float, again: str, snippet: str) -> Result:
        """The cell's result.

        Args:
            missing: why not all examples were covered, if so.
            again: the command that asks the cell again.
            snippet: a program that shows the failure again.
        """
        cell, failure = self.cell, self.failure
        shown = failure[0] if failure else min((one for one, _ in self.worst.values()), key=_headroom, default=None)
        status, reason = self._verdict(missing)
        return Result(
            id=cell.check.id, tier=cell.check.tier, title=cell.check.title, stacks=cell.stacks, question=cell.question, device=cell.devices,
            dtype=cell.dtype, status=status, reason=reason, beneath=self._beneath(missing), again=again, snippet=snippet,
            reproducer=self.reproducer, no_reproducer=self.no_reproducer,
            examples=self.examples, real_weights=self.real, seconds=seconds, drawn=self.drawn, alarms=self.alarms,
            alarm_rate=confidence.clopper_pearson(self.alarms, self.drawn) if self.drawn else None,
            observed=shown.observed if shown else None, bound=shown.bound if shown else None,
            bound_source=shown.bound_source if shown else "", headroom=shown.headroom if shown else None,
            faults=tuple(self.faults),
            controls=Controls(applied=self.controls.applied, caught=self.controls.caught),
            tensors=tuple(
                TensorResult(
                    tensor=one.tensor, observed=one.observed, bound=one.bound, unit=one.unit, bound_source=one.bound_source,
                    headroom=one.headroom, relative=self.relative.get(one.tensor),
                    tightness=_tightness(self.ratios[one.tensor]) if one.bound > 0 else None,
                    case=case.name,
                )
                for one, case in self.worst.values()
            ),
        )  # fmt: skip

    def left(self) -> Result:
        """The result of a cell that the profile leaves to the longest one: neither passed nor red."""
        cell = self.cell
        return Result(
            id=cell.check.id, tier=cell.check.tier, title=cell.check.title, stacks=cell.stacks, question=cell.question, device=cell.devices,
            dtype=cell.dtype, status=Status.LEFT_TO_NIGHTLY, reason=f"asked by: parity run --profile nightly --only {cell.check.id}",
        )  # fmt: skip

    def _verdict(self, missing: str) -> tuple[Status, str]:
        if self.failure is not None:
            return Status.FAIL, _explain(self.cell, *self.failure) + (f"; {self.error}" if self.error else "")
        if self.error:
            return Status.ERROR, self.error
        if missing or self.missing or not self.worst:
            return Status.NOT_COVERED, missing or self.missing or NOTHING_COMPARED
        return Status.PASS, ""

    def _beneath(self, missing: str) -> Status | None:
        """What is to be said of a failed cell besides, and would hide behind a waiver of its failure."""
        if self.failure is None or not (self.error or missing or self.missing):
            return None
        return Status.ERROR if self.error else Status.NOT_COVERED


def _tightness(ratios: Sequence[float]) -> Tightness | None:
    if not np.isfinite(ratios).all():
        return None
    median, most, largest = np.quantile(ratios, (0.5, 0.99, 1.0), method="higher")
    return Tightness(median=float(median), most=float(most), largest=float(largest))


def _tighter(one: Comparison, other: Comparison) -> bool:
    """Whether `one` has less head-room than `other`; a failed comparison has the least."""
    return (one.passed, _headroom(one)) < (other.passed, _headroom(other))


def _headroom(comparison: Comparison) -> float:
    return float("inf") if comparison.headroom is None else comparison.headroom


def _explain(cell: Cell, comparison: Comparison, case: Case) -> str:
    where = f"{list(comparison.where)}" if comparison.where else ""
    names = cell.stacks if len(cell.stacks) > 1 and " of " not in comparison.tensor else ("got", "wanted")
    values = "" if comparison.got is None else f"{names[0]} {comparison.got:.9g}, {names[1]} {comparison.wanted:.9g}; "
    difference = f"{comparison.unit} {comparison.observed:.4g}, allowed {comparison.bound:.4g}"
    return f"{comparison.place or comparison.tensor}{where}: {values}{difference} (on {case.name})"
