"""The runner: what it asks and in which order, the repair loop, budgets, and what a resumed run asks again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.scorecard import event_log
from parity.scorecard.conditions import Ask, BrokeDown, Outcome
from parity.scorecard.event import Completion, Infra
from parity.scorecard.event_log import FILE, read_events
from parity.scorecard.repair import MAX_ANSWER, Standing, standing
from parity.scorecard.report import episodes_of
from parity.scorecard.runner import BudgetSpent, Runner
from tests.parity.scorecard.scorecard_cases import Scripted, runner, said_of, scorecard, scripted

WORDS = {"t0": "alpha", "t1": "beta", "t2": "gamma"}
LOST = BrokeDown(error="timeout", message="no whole answer", latency_ms=5.0)


class Killed(BaseException):
    """As a SIGKILL: nothing more is done."""


def right(ask: Ask) -> str:
    return WORDS[ask.asked.task]


def keys(asks: list[Ask]) -> list[tuple[int, int, str]]:
    return [(ask.asked.seed, ask.asked.attempt, ask.asked.task) for ask in asks]


def ran(made: Runner) -> list[Any]:
    try:
        made.run()
    finally:
        made.log.close()
    return read_events(made.log._path)


def test_all_right_at_once(tmp_path: Path) -> None:
    condition = scripted(right)
    made = runner(scorecard(tmp_path), tmp_path / "out", {"c": condition})
    events = ran(made)
    assert keys(condition.asked) == [(seed, 1, task) for seed in (1, 2) for task in WORDS]
    assert made.unfinished() == 0
    assert [event.scores.time_to_first_valid_ms for event in events] == [10.0] * 6
    assert len({event.event_id for event in events}) == 6
    assert {ask.prompt for ask in condition.asked} == {"Say alpha.", "Say beta.", "Say gamma."}


def test_a_repair_is_told_its_answer_and_errors_and_ends_when_it_passes(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        return right(ask) if ask.asked.attempt == 2 else "no" * 5000

    condition = scripted(say)
    events = ran(runner(scorecard(tmp_path, seeds=[1]), tmp_path / "out", {"c": condition}))
    assert keys(condition.asked) == [(1, attempt, task) for attempt in (1, 2) for task in WORDS]
    repair = condition.asked[3].prompt
    assert repair.endswith("\nSay alpha.")
    assert "no" * (MAX_ANSWER // 2) in repair
    assert "no" * (MAX_ANSWER // 2 + 1) not in repair
    assert events[0].scores.errors[0] in repair
    last = events[3].scores
    assert (last.compile_pass_1, last.compile_pass_n, last.repair_depth, last.task_success) == (False, True, 1, True)
    assert last.time_to_first_valid_ms == 20.0


def test_the_same_errors_twice_are_a_stall(tmp_path: Path) -> None:
    condition = scripted(lambda ask: "no")
    events = ran(runner(scorecard(tmp_path, seeds=[1], max_retries=5), tmp_path / "out", {"c": condition}))
    assert len(events) == 6
    assert [event.scores.repair_stalled for event in events] == [False] * 3 + [True] * 3


def test_other_errors_are_no_stall_and_retries_run_out(tmp_path: Path) -> None:
    task = {
        "id": "t", "family": "f", "prompt": "Write a document.", "language": "json", "reference": '{"a": 1}',
        "validators": [{"kind": "json", "document_schema": {"type": "object", "required": ["a"]}}],
    }  # fmt: skip
    said = ["{", '{"b": 2}', "[3]", '{"a": 4}']
    condition = scripted(lambda ask: said[ask.asked.attempt - 1])
    card = scorecard(tmp_path, seeds=[1], max_retries=2, tasks=[task])
    events = ran(runner(card, tmp_path / "out", {"c": condition}))
    assert [event.answer for event in events] == said[:3]
    assert not any(event.scores.repair_stalled or event.scores.task_success for event in events)
    assert len({event.scores.errors for event in events}) == 3
    assert standing(events, 2) is Standing.EXHAUSTED


def test_syntax_and_semantics_are_apart(tmp_path: Path) -> None:
    """`be` has what the syntax wants of task two, and not its word."""
    condition = scripted(lambda ask: "be")
    events = ran(runner(scorecard(tmp_path, seeds=[1], max_retries=0), tmp_path / "out", {"c": condition}))
    scores = {event.task: (event.scores.compile_pass_n, event.scores.semantic_task_success) for event in events}
    assert scores == {"t0": (False, False), "t1": (True, False), "t2": (False, False)}


def test_what_broke_down_is_no_failure_and_is_asked_again_when_the_run_goes_on(tmp_path: Path) -> None:
    broken = scripted(lambda ask: LOST if ask.asked.task == "t1" else right(ask))
    made = runner(scorecard(tmp_path), tmp_path / "out", {"c": broken})
    events = ran(made)
    assert made.unfinished() == 2
    assert [event.task for event in events if isinstance(event, Infra)] == ["t1", "t1"]
    again = scripted(right)
    made = runner(scorecard(tmp_path), tmp_path / "out", {"c": again})
    events = ran(made)
    assert keys(again.asked) == [(1, 1, "t1"), (2, 1, "t1")]
    assert made.unfinished() == 0
    assert sum(isinstance(event, Infra) for event in events) == 2


def test_too_many_that_broke_down_end_the_run_and_a_later_one_begins_to_count_anew(tmp_path: Path) -> None:
    card = scorecard(tmp_path, budgets={"infra_errors": 2})
    made = runner(card, tmp_path / "out", {"c": scripted(lambda ask: LOST)})
    with pytest.raises(BudgetSpent, match="infra_errors: 3"):
        ran(made)
    assert len(read_events(tmp_path / "out" / FILE)) == 3
    made = runner(card, tmp_path / "out", {"c": scripted(right)})
    ran(made)
    assert made.unfinished() == 0


@pytest.mark.parametrize(("budget", "events"), [({"total_tokens": 24}, 2), ({"total_tokens": 25}, 3), ({"total_seconds": 0.02}, 2)])
def test_a_budget_of_the_whole_ends_a_run_which_goes_on_with_a_larger_one(tmp_path: Path, budget: dict[str, Any], events: int) -> None:
    """Two answers a batch, each of 12 tokens and 10 ms."""
    with pytest.raises(BudgetSpent, match=next(iter(budget))):
        ran(runner(scorecard(tmp_path, budgets=budget), tmp_path / "out", {"c": scripted(right)}))
    assert len(read_events(tmp_path / "out" / FILE)) == events
    condition = scripted(right)
    ran(runner(scorecard(tmp_path), tmp_path / "out", {"c": condition}))
    assert len(condition.asked) == 6 - events


def test_a_batch_counts_its_time_once(tmp_path: Path) -> None:
    def say(ask: Ask) -> Outcome:
        said = said_of(right(ask), latency_ms=1000.0)
        return type(said)(**(vars(said) | {"batch": 100}))

    ran(runner(scorecard(tmp_path, budgets={"total_seconds": 0.07}), tmp_path / "out", {"c": scripted(say)}))


answers = st.lists(st.sampled_from(["right", "no", "be", "lost"]), min_size=18, max_size=18)


@pytest.fixture
def _unsynced() -> Iterator[None]:
    """The machine itself goes on: what was written is there without its disk."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(event_log.os, "fsync", lambda descriptor: None)
        yield


@pytest.mark.usefixtures("_unsynced")
@given(said=answers, stop=st.integers(0, 20), cuts=st.integers(0, 300))
def test_killed_anywhere_a_run_loses_and_repeats_nothing(
    said: list[str], stop: int, cuts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Killed after any number of answers, its last line torn anywhere: resumed, it comes to what an unbroken run comes to."""
    folder = tmp_path_factory.mktemp("run")
    place = {key: said[n] for n, key in enumerate(itertools.product(WORDS, (1, 2), (1, 2, 3)))}

    def say(ask: Ask) -> Outcome | str:
        word = place[ask.asked.task, ask.asked.seed, ask.asked.attempt]
        return right(ask) if word == "right" else word

    def unbroken(ask: Ask) -> Outcome | str:
        return "no" if (found := say(ask)) == "lost" else found

    whole = ran(runner(scorecard(folder), folder / "whole", {"c": scripted(unbroken)}))

    def until_killed(ask: Ask) -> Outcome | str:
        if len(first.asked) > stop:
            raise Killed
        return LOST if say(ask) == "lost" else say(ask)

    first: Scripted = scripted(until_killed)
    try:
        ran(runner(scorecard(folder), folder / "out", {"c": first}))
    except Killed:
        content = (folder / "out" / FILE).read_bytes()
        before = content.rfind(b"\n", 0, len(content) - 1) + 1
        (folder / "out" / FILE).write_bytes(content[: max(before, len(content) - cuts)])
    kept = {event.asked for event in read_events(folder / "out" / FILE) if isinstance(event, Completion)}
    second = scripted(unbroken)
    events = ran(runner(scorecard(folder), folder / "out", {"c": second}))
    assert not kept & {ask.asked for ask in second.asked}
    assert episodes_of("c", events) == episodes_of("c", whole)
