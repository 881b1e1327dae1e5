"""What a train file becomes, counted: how many tokens, how many of them are learnt, which rows lose some or all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from contract.data.batches import supervised
from contract.data.train_rows import TrainRows

_TOGETHER = 256
"""Rows that are made into examples at a time."""


class Census(BaseModel):
    """Counts over every row that the filters leave, validation's among them.

    tokens, learnt: of all examples. longest: tokens of the longest example. truncated: rows that are longer than seq_len.
    skipped: rows without a token to learn, by reason; first_skipped: the line of the first of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    tokens: int
    learnt: int
    longest: int
    truncated: int
    skipped: dict[str, int]
    first_skipped: int | None

    @property
    def skip_rate(self) -> float:
        """Share of the rows without a token to learn."""
        return sum(self.skipped.values()) / self.rows


def take(rows: TrainRows, progress: Callable[[int, int], None] = lambda done, total: None) -> Census:
    """Makes every row into an example, and counts.

    Args:
        progress: told rows done, and rows in all.

    Raises:
        ContractError: a row that can't be rendered or encoded, or a train file that has changed.
    """
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    longest, first_skipped, total = 0, None, len(rows.index)
    for start in range(0, total, _TOGETHER):
        found = rows.labelled(range(start, min(start + _TOGETHER, total)))
        counts["truncated"] += found.truncated
        for example in found.examples:
            counts["tokens"] += len(example.ids)
            counts["learnt"] += supervised(example)
            longest = max(longest, len(example.ids))
        skipped.update(one.reason for one in found.skipped)
        if first_skipped is None and found.skipped:
            first_skipped = found.skipped[0].line
        progress(min(start + _TOGETHER, total), total)
    return Census(
        rows=total, tokens=counts["tokens"], learnt=counts["learnt"], longest=longest, truncated=counts["truncated"],
        skipped=dict(skipped), first_skipped=first_skipped,
    )  # fmt: skip
