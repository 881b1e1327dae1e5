"""The repair loop: an answer that fails goes back to its author with its errors, until it passes, stalls, or retries run out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from parity.scorecard.event import Completion

MAX_ANSWER = 4_000
"""Characters of an answer that its author is shown again: one that never ends must leave room for the task."""
MAX_ERRORS = 8
MAX_ERROR = 400
"""Characters of one error."""


class Standing(StrEnum):
    """How a task stands: nothing more is asked unless it is open."""

    OPEN = "open"
    PASSED = "passed"
    STALLED = "stalled"
    EXHAUSTED = "exhausted"


def standing(attempts: Sequence[Completion], max_retries: int) -> Standing:
    """How a task stands after the attempts so far, in their order."""
    if not attempts:
        return Standing.OPEN
    last = attempts[-1].scores
    if last.task_success:
        return Standing.PASSED
    if last.repair_stalled:
        return Standing.STALLED
    return Standing.EXHAUSTED if len(attempts) > max_retries else Standing.OPEN


def stalls(errors: Iterable[str], earlier: Iterable[Completion]) -> bool:
    """Whether a failed answer's set of errors, in any order, came before."""
    found = frozenset(errors)
    return any(found == frozenset(attempt.scores.errors) for attempt in earlier)


def prompt_of(prompt: str, earlier: Sequence[Completion]) -> str:
    """The user's turn of the next attempt: the task; after a failure, before it, the last answer and its errors.

    The task comes last, as it stands in a first attempt: a small model that reads its errors last repeats them. One turn, and not a
    conversation: so it means the same to every kind of condition, and to models that were trained on single turns.
    """
    if not earlier:
        return prompt
    last = earlier[-1]
    errors = [f"- {' '.join(error.split())[:MAX_ERROR]}" for error in last.scores.errors[:MAX_ERRORS]]
    return "\n".join(["An earlier answer was wrong:", last.answer[:MAX_ANSWER], "", "Its errors:", *errors, "", prompt])
