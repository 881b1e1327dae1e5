"""Judging answers that were given: nothing is generated again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.worker.files import replacing
from parity.options import Progress
from parity.scorecard.event import Completion, Infra
from parity.scorecard.event_log import FILE, line_of, read_events
from parity.scorecard.event_scores import Judges, scores
from parity.scorecard.repair import Standing, standing
from parity.scorecard.report import RESCORED
from parity.scorecard.runner_folder import read_run


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """What came of it.

    answers: judged. changed: of them judged otherwise than before. left_out: answers that nobody would have asked for, since one before
    them now passes or stalls. wanting: episodes that now are open, since an answer that passed does not: more would have been asked.
    """

    answers: int
    changed: int
    left_out: int
    wanting: int


def rescore(folder: Path, judges: Judges, progress: Progress) -> Rescored:
    """Judges every answer of a run anew, and writes rescored.jsonl beside its log, which stays as it is.

    Raises:
        ContractError, ContractErrors: a file of the folder is not there or not sound.
        OSError: rescored.jsonl can't be written.
    """
    _, scorecard = read_run(folder)
    tasks, retries = {task.id: task for task in scorecard.tasks}, scorecard.spec.max_retries
    events = read_events(folder / FILE)
    progress.doing("judging")
    progress.total(sum(isinstance(event, Completion) for event in events))
    episodes: dict[tuple[str, str, int], list[Completion]] = {}
    kept: list[Completion | Infra] = []
    before: dict[tuple[str, str, int], list[Completion]] = {}
    changed = left_out = 0
    for event in _in_order(events):
        if isinstance(event, Infra):
            kept.append(event)
            continue
        key = (event.condition, event.task, event.seed)
        before.setdefault(key, []).append(event)
        earlier = episodes.setdefault(key, [])
        progress.step()
        if standing(earlier, retries) is not Standing.OPEN:
            left_out += 1
            continue
        new = event.model_copy(update={"scores": scores(tasks[event.task], event.answer, event.latency_ms, earlier, judges)})
        changed += new.scores != event.scores
        earlier.append(new)
        kept.append(new)
    with replacing(folder / RESCORED) as file:
        file.writelines(map(line_of, kept))
    wanting = sum(
        standing(attempts, retries) is Standing.OPEN and standing(before[key], retries) is not Standing.OPEN
        for key, attempts in episodes.items()
    )
    return Rescored(answers=sum(map(len, before.values())), changed=changed, left_out=left_out, wanting=wanting)


def _in_order(events: Sequence[Completion | Infra]) -> list[Completion | Infra]:
    """An episode's attempts come in the order of their numbers, since each is judged in the light of those before."""
    return sorted(events, key=lambda event: event.attempt)
