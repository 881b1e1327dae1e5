"""The runner: asks each condition each task for each seed, judges, repairs; every attempt is on disk before the next batch is asked."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from parity.options import Progress
from parity.scorecard.conditions import Ask, BrokeDown, Generator, Outcome
from parity.scorecard.event import Asked, Completion, Infra
from parity.scorecard.event_log import EventLog
from parity.scorecard.event_scores import Judges, scores
from parity.scorecard.repair import Standing, prompt_of, standing
from parity.scorecard.runner_folder import Manifest
from parity.scorecard.spec import AnyCondition
from parity.scorecard.spec_source import Scorecard
from parity.scorecard.task import Task

FLUSH_SECONDS = 0.2
"""How long an answer that was judged waits, at most while others are, to be written with them."""


class BudgetSpent(Exception):
    """A limit of the spec's budgets was met: the message says which."""


@dataclass
class Runner:
    """One run.

    Attributes:
        opened: the generator of each condition.
        log: where events go; what is there already is not asked again.
    """

    scorecard: Scorecard
    manifest: Manifest
    opened: Mapping[str, Generator]
    judges: Judges
    log: EventLog
    progress: Progress
    _attempts: dict[tuple[str, str, int], list[Completion]] = field(default_factory=dict)
    _lost: int = 0
    _milliseconds: float = 0.0
    _tokens: int = 0

    def run(self) -> None:
        """Asks all that is open.

        Raises:
            BudgetSpent: a limit was met; what was answered is in the log.
            OSError: an event can't be written.
        """
        spec = self.scorecard.spec
        cells = list(itertools.product(spec.conditions, spec.seeds))
        self.progress.total(len(cells) * len(self.scorecard.tasks))
        for event in self.log.events:
            self._note(event)
        self._lost = 0  # of this run alone: what broke down before is asked again
        for condition, seed in cells:
            self._cell(condition, seed)

    def unfinished(self) -> int:
        """How many tasks, over conditions and seeds, are still open."""
        spec = self.scorecard.spec
        cells = itertools.product(spec.conditions, self.scorecard.tasks, spec.seeds)
        return sum(self._standing(condition.id, task, seed) is Standing.OPEN for condition, task, seed in cells)

    def _cell(self, condition: AnyCondition, seed: int) -> None:
        """All tasks of one condition and seed: the first attempt at each, then the second at those still open, and so on."""
        generator = self.opened[condition.id]
        for attempt in range(1, self.scorecard.spec.max_retries + 2):
            waiting = [
                task
                for task in self.scorecard.tasks
                if len(self._earlier(condition.id, task, seed)) == attempt - 1 and self._standing(condition.id, task, seed) is Standing.OPEN
            ]
            for start in range(0, len(waiting), generator.batch):
                self._require_budget()
                self._batch(condition, seed, attempt, waiting[start : start + generator.batch])

    def _batch(self, condition: AnyCondition, seed: int, attempt: int, tasks: Sequence[Task]) -> None:
        by_id = {task.id: task for task in tasks}
        asks = [
            Ask(
                asked=Asked(condition=condition.id, task=task.id, seed=seed, attempt=attempt),
                prompt=prompt_of(task.prompt, self._earlier(condition.id, task, seed)),
            )
            for task in tasks
        ]
        name = f"{condition.id}, seed {seed}, attempt {attempt}"
        self.progress.doing(name)
        for together in self.opened[condition.id].answer(asks, lambda what: self.progress.doing(f"{name}: {what}")):
            with self._written() as write:
                for ask, outcome in together:
                    event = self._event(condition, by_id[ask.asked.task], ask, outcome)
                    write(event)
                    self._note(event)
            self._require_answers(together)

    @contextmanager
    def _written(self) -> Iterator[Callable[[Completion | Infra], None]]:
        """Events go to the log together, since each time costs milliseconds; those that were judged a while ago do not wait."""
        waiting: list[Completion | Infra] = []
        flushed = time.monotonic()

        def write(event: Completion | Infra) -> None:
            nonlocal flushed
            waiting.append(event)
            if time.monotonic() - flushed > FLUSH_SECONDS:
                self.log.append(waiting)
                waiting.clear()
                flushed = time.monotonic()

        try:
            yield write
        finally:
            if waiting:
                self.log.append(waiting)

    def _require_answers(self, together: Sequence[tuple[Ask, Outcome]]) -> None:
        lost = [outcome for _, outcome in together if isinstance(outcome, BrokeDown)]
        if lost and self._lost > self.scorecard.spec.budgets.infra_errors:
            raise BudgetSpent(f"infra_errors: {self._lost} attempts were lost, the last to: {lost[-1].message}")

    def _event(self, condition: AnyCondition, task: Task, ask: Ask, outcome: Outcome) -> Completion | Infra:
        asked, manifest = ask.asked, self.manifest
        event_id = asked.event_id(spec=manifest.spec_sha256, cycle=manifest.cycle)
        if isinstance(outcome, BrokeDown):
            return Infra(
                event_id=event_id, condition=condition.id, backend=condition.backend, family=task.family, task=task.id, seed=asked.seed,
                attempt=asked.attempt, error=outcome.error, message=outcome.message, latency_ms=outcome.latency_ms,
            )  # fmt: skip
        found = scores(task, outcome.text, outcome.latency_ms, self._earlier(condition.id, task, asked.seed), self.judges)
        return Completion(
            event_id=event_id, condition=condition.id, backend=condition.backend, family=task.family, task=task.id, seed=asked.seed,
            attempt=asked.attempt, answer=outcome.text, finish=outcome.finish, tokens_in=outcome.tokens_in, tokens_out=outcome.tokens_out,
            latency_ms=outcome.latency_ms, batch=outcome.batch, scores=found,
        )  # fmt: skip

    def _note(self, event: Completion | Infra) -> None:
        if isinstance(event, Infra):
            self._milliseconds += event.latency_ms
            self._lost += 1
            return
        self._milliseconds += event.latency_ms / event.batch
        self._tokens += event.tokens_in + event.tokens_out
        attempts = self._attempts.setdefault((event.condition, event.task, event.seed), [])
        attempts.append(event)
        if standing(attempts, self.scorecard.spec.max_retries) is not Standing.OPEN:
            self.progress.step()

    def _earlier(self, condition: str, task: Task, seed: int) -> list[Completion]:
        return self._attempts.get((condition, task.id, seed), [])

    def _standing(self, condition: str, task: Task, seed: int) -> Standing:
        return standing(self._earlier(condition, task, seed), self.scorecard.spec.max_retries)

    def _require_budget(self) -> None:
        budgets = self.scorecard.spec.budgets
        if budgets.total_seconds is not None and self._milliseconds >= 1000 * budgets.total_seconds:
            raise BudgetSpent(f"total_seconds: {self._milliseconds / 1000:.0f} of {budgets.total_seconds:g}")
        if budgets.total_tokens is not None and self._tokens >= budgets.total_tokens:
            raise BudgetSpent(f"total_tokens: {self._tokens:,} of {budgets.total_tokens:,}")
