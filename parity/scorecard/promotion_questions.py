"""The summary's two questions: is the production lane at a plateau, and does the candidate win decisively?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.scorecard.cycle import Cycle, Lane
from parity.scorecard.promotion_rule import Rule
from parity.scorecard.promotion_verdict import Questions


def answer(cycles: Sequence[Cycle], rule: Rule) -> Questions:
    """Answers both, over all cycles; a lane's training runs are its conditions."""
    asks = rule.questions
    production = [cycle.baseline for cycle in cycles]
    candidate = [cycle.candidate for cycle in cycles]
    by_run = [rate for lane in production for rate in _rates(lane)]
    spread = max(by_run) - min(by_run)
    strict, success = _mean(production, "strict"), _mean(production, "success")
    kpis = {"strictness": strict, "syntax": _mean(production, "syntax"), "semantics": _mean(production, "semantics")}
    low = [f"{name} {value:.3f} < {getattr(asks, name)}" for name, value in kpis.items() if value < getattr(asks, name)]
    win = _mean(candidate, "success") - success
    stricter = _mean(candidate, "strict") - strict
    return Questions(
        plateau=spread <= asks.spread and bool(low),
        plateau_why=f"task success of its {len(by_run)} training runs within {spread:.3f} ({asks.spread} is a plateau's); "
        + (", ".join(low) if low else "strictness, syntax and semantics are high enough"),
        decisive=win > asks.decisive and stricter >= 0,
        decisive_why=f"task success {win:+.3f} (over {asks.decisive} wins), strictness {stricter:+.3f} (no less wins)",
    )


def _rates(lane: Lane) -> list[float]:
    """Task success of each training run that has a complete task."""
    return [float(row[done].mean()) for row, done in zip(lane.scores.success, lane.scores.complete, strict=True) if done.any()]


def _mean(lanes: Sequence[Lane], name: str) -> float:
    return float(np.concatenate([getattr(lane.scores, name)[lane.scores.complete] for lane in lanes]).mean())
