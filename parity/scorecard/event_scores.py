"""Scores of one answer: what its task's validators say, its form, and what that makes of the attempts before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from parity.scorecard.event import Completion, Scores
from parity.scorecard.repair import stalls
from parity.scorecard.task import Language, Task
from parity.scorecard.validators.spec import Validator


class Verdict(Protocol):
    """What one validator says of an answer. errors: for its author's eyes; they don't tell what was expected."""

    @property
    def syntax(self) -> bool: ...
    @property
    def semantics(self) -> bool: ...
    @property
    def errors(self) -> tuple[str, ...]: ...


class Form(Protocol):
    """How an answer is written (parity.scorecard.validators.form)."""

    @property
    def canonical(self) -> bool: ...
    @property
    def strict(self) -> bool: ...
    @property
    def placeholder_hits(self) -> int: ...
    @property
    def trivial(self) -> bool: ...
    @property
    def richness(self) -> float: ...
    @property
    def anti_stub(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who judges: validate(validator, answer) and form(answer, language)."""

    validate: Callable[[Validator, str], Verdict]
    form: Callable[[str, Language], Form]


def judged(task: Task, answer: str, judges: Judges) -> tuple[bool, bool, tuple[str, ...]]:
    """Syntax and semantics by all of a task's validators, and their errors, each once."""
    verdicts = [judges.validate(validator, answer) for validator in task.judges]
    errors = tuple(dict.fromkeys(error for verdict in verdicts for error in verdict.errors))
    return all(verdict.syntax for verdict in verdicts), all(verdict.semantics for verdict in verdicts), errors


def scores(task: Task, answer: str, latency_ms: float, earlier: Sequence[Completion], judges: Judges) -> Scores:
    """Scores of an answer.

    Args:
        earlier: the attempts at this task before it, of the same condition and seed, in their order.
    """
    form = judges.form(answer, task.language)
    syntax, semantics, errors = judged(task, answer, judges)
    accepted = syntax and semantics
    return Scores(
        compile_pass_1=earlier[0].scores.compile_pass_1 if earlier else syntax,
        compile_pass_n=syntax,
        repair_depth=len(earlier),
        canonical_pass=form.canonical,
        strictness=form.strict,
        task_success=accepted,
        semantic_task_success=semantics,
        error_count=len(errors),
        errors=errors,
        time_to_first_valid_ms=sum(event.latency_ms for event in earlier) + latency_ms if accepted else None,
        repair_stalled=not accepted and stalls(errors, earlier),
        placeholder_hits=form.placeholder_hits,
        trivial_output=form.trivial,
        richness=form.richness,
        anti_stub_pass=form.anti_stub,
    )
