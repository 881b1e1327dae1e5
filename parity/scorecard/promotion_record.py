"""What a verdict leaves for the planner: the promotion record."""

from __future__ import annotations

from pathlib import Path

from contract.artifacts.promotion import PromotionRecord, record_name, write_promotion
from parity.scorecard.promotion_verdict import Verdict

_MOST = 4096
_RECORDED = ("PROMOTE", "REJECT")


def record(verdict: Verdict, folder: Path) -> Path | None:
    """Writes the record of a PROMOTE; a REJECT takes the place of an earlier record of the same binding, and writes none where none is.

    Returns the file that was written. HOLD and INVALID leave what is there: they say nothing new of the backend.
    """
    if verdict.binding is None or verdict.decision not in _RECORDED:
        return None
    if verdict.decision == "REJECT" and not (folder / record_name(verdict.binding)).exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return write_promotion(folder, PromotionRecord(
        binding=verdict.binding, decision=verdict.decision, reasons=tuple(reason[:_MOST] for reason in verdict.reasons[:_MOST]),
        cycles=len(verdict.cycles), evidence={**verdict.evidence, "rule": verdict.rule_sha256},
    ))  # fmt: skip
