"""Canaries: before anybody is asked, each task's reference must pass its validators, and an answer that says nothing must fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from contract.errors import ContractError, ContractErrors
from parity.scorecard.event_scores import Judges, judged
from parity.scorecard.task import Language, Task

TRIVIAL: dict[Language, str] = {"sql": "SELECT 1", "python": "pass", "json": "null", "text": " "}
"""An answer in each language that does no task."""

MAX_TOLD = 20


def faults(tasks: Sequence[Task], judges: Judges, step: Callable[[], None] = lambda: None) -> Iterator[ContractError]:
    """What is wrong with tasks, one at a time."""
    for task in tasks:
        syntax, semantics, errors = judged(task, task.reference, judges)
        if not (syntax and semantics):
            told = "; ".join(errors)[:400] or "no reason given"
            allowed = "a reference that passes all of its validators"
            yield ContractError(
                f"task {task.id}", got=f"a reference that fails ({told})", allowed=allowed, remedy="correct the one or the other"
            )
        syntax, semantics, _ = judged(task, TRIVIAL[task.language], judges)
        if syntax and semantics:
            got = f"validators that accept {TRIVIAL[task.language]!r}"
            yield ContractError(f"task {task.id}", got=got, allowed="validators that fail it", remedy="make them stricter")
        step()


def require_sound(tasks: Sequence[Task], judges: Judges, step: Callable[[], None] = lambda: None) -> None:
    """Raises ContractError or ContractErrors where a canary fails; the first of many are told."""
    found = list(faults(tasks, judges, step))
    if found:
        raise found[0] if len(found) == 1 else ContractErrors(found[:MAX_TOLD])
