"""Answers from a folder: which is given, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ContractError
from parity.scorecard.conditions import Ask, Said, open_condition
from parity.scorecard.conditions_fixture import Fixture
from parity.scorecard.event import Asked
from parity.scorecard.spec import FixtureFile
from tests.parity.scorecard.scorecard_cases import scorecard

CONDITION = FixtureFile(id="c", kind="fixture_file", backend="b", fixture_dir="answers")


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    (folder / "answers").mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "answers" / "answers.jsonl").write_text(text)
    return folder


def said(fixture: Fixture, task: str, seed: int, attempt: int) -> str:
    ask = Ask(asked=Asked(condition="c", task=task, seed=seed, attempt=attempt), prompt="?")
    [[(back, found)]] = fixture.answer([ask], lambda what: None)
    assert back is ask
    assert isinstance(found, Said)
    return found.text


def test_a_seeds_own_answers_go_before_those_of_all_and_the_last_comes_again(tmp_path: Path) -> None:
    rows = [
        {"task": "t", "text": "all 1"}, {"task": "t", "attempt": 2, "text": "all 2"}, {"task": "t", "seed": 7, "text": "own 1"},
    ]  # fmt: skip
    fixture = Fixture(CONDITION, beside=write(tmp_path, *rows))
    assert [said(fixture, "t", 1, attempt) for attempt in (1, 2, 3, 9)] == ["all 1", "all 2", "all 2", "all 2"]
    assert [said(fixture, "t", 7, attempt) for attempt in (1, 2)] == ["own 1", "own 1"]


@pytest.mark.parametrize(
    ("line", "words"),
    [("no json", "answers.jsonl:2"), ({"task": "t", "text": "x", "more": 1}, ":2: more"), ({"task": "t"}, ":2: text"),
     ({"task": "t", "text": "x", "attempt": 0}, ":2: attempt"), ({"task": "t0", "text": "x"}, "attempt 1 of t0 twice"), ("", ":2")],
)  # fmt: skip
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: dict[str, Any] | str, words: str) -> None:
    with pytest.raises(ContractError) as caught:
        Fixture(CONDITION, beside=write(tmp_path, {"task": "t0", "text": "x"}, line))
    assert words in str(caught.value)


def test_every_task_and_seed_has_an_answer_before_any_is_asked(tmp_path: Path) -> None:
    card = scorecard(write(tmp_path, {"task": "t0", "text": "x"}, {"task": "t1", "text": "x"}, {"task": "t2", "seed": 1, "text": "x"}))
    with pytest.raises(ContractError, match="no first answer to t2, seed 2"):
        open_condition(card, CONDITION)
    with pytest.raises(ContractError, match="no such file"):
        open_condition(scorecard(tmp_path / "elsewhere"), CONDITION)


def test_training_json_is_read_strictly(tmp_path: Path) -> None:
    write(tmp_path, {"task": "t", "text": "x"})
    fixture = Fixture(CONDITION, beside=tmp_path)
    assert fixture.facts().training is None
    (tmp_path / "answers" / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="required"):
        fixture.facts()
