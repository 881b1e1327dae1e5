"""A whole run: a spec read, its references judged, its conditions opened, all asked, all closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from parity.options import Progress
from parity.scorecard.conditions import Generator, open_condition
from parity.scorecard.event_log import FILE, EventLog
from parity.scorecard.event_scores import Judges
from parity.scorecard.runner import BudgetSpent, Runner
from parity.scorecard.runner_folder import begin
from parity.scorecard.spec_source import Scorecard, read_scorecard
from parity.scorecard.task_canaries import require_sound


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended. spent: the budget that ended it, or nothing. unfinished: episodes without an end."""

    spent: str
    unfinished: int


@contextmanager
def judging(scorecard: Scorecard) -> Iterator[Judges]:
    """Who judges answers to a spec's tasks.

    Raises:
        EnvironmentUnfit: a sandbox is needed and can't be had here.
    """
    from parity.scorecard.validators.form import quality
    from parity.scorecard.validators.judge import Judge

    with Judge(isolation=scorecard.spec.isolation) as judge:
        judge.require([validator for task in scorecard.tasks for validator in task.judges])
        yield Judges(validate=judge.validate, form=quality)


def run_whole(spec: Path, out: Path, *, cycle: str, progress: Progress) -> Ended:
    """Runs a spec into a folder, or goes on with the run that is there.

    Raises:
        UserError: the spec, a condition's files or the folder is not sound; a reference fails.
        EnvironmentUnfit: a sandbox is needed and can't be had here.
        OSError: the folder can't be written.
    """
    scorecard = read_scorecard(spec)
    with judging(scorecard) as judges:
        return run_scorecard(scorecard, out, judges, cycle=cycle, progress=progress)


def run_scorecard(scorecard: Scorecard, out: Path, judges: Judges, *, cycle: str, progress: Progress) -> Ended:
    """`run_whole` of a spec that was read."""

    def references() -> None:
        progress.doing("references")
        require_sound(scorecard.tasks, judges)

    with ExitStack() as exits:
        opened: dict[str, Generator] = {}
        for condition in scorecard.spec.conditions:
            progress.doing(f"opening {condition.id}")
            opened[condition.id] = generator = open_condition(scorecard, condition)
            exits.callback(generator.close)
        facts = {name: generator.facts() for name, generator in opened.items()}
        manifest = begin(out, scorecard, cycle=cycle, conditions=facts, fits=references)
        log = EventLog(out / FILE)
        exits.callback(log.close)
        runner = Runner(scorecard=scorecard, manifest=manifest, opened=opened, judges=judges, log=log, progress=progress)
        spent = ""
        try:
            runner.run()
        except BudgetSpent as error:
            spent = str(error)
        return Ended(spent=spent, unfinished=runner.unfinished())
