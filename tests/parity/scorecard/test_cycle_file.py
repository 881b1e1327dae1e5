"""A cycle on disk: what is written is read, and what is no cycle is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ContractError, UserError
from parity.scorecard.cycle import Cycle, Scores
from parity.scorecard.cycle_file import CYCLE, OUTCOMES, read_cycle
from tests.parity.scorecard import made_cycles as made

SMALL = made.cycle(tasks=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made.written(SMALL, tmp_path / "cycle")


def outcomes(folder: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Edits the lines, and the hash with them."""
    lines = [json.loads(line) for line in (folder / OUTCOMES).read_text().splitlines()]
    edit(lines)
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (folder / OUTCOMES).write_bytes(content)
    record(folder, lambda value: value.update(outcomes_sha256=hashlib.sha256(content).hexdigest()))


def record(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads((folder / CYCLE).read_text())
    edit(value)
    (folder / CYCLE).write_text(json.dumps(value))


def scores_equal(one: Scores, other: Scores) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Scores))


def same(one: Cycle, other: Cycle) -> bool:
    lanes = ("baseline", "candidate", "control")
    plain = {field.name for field in dataclasses.fields(Cycle)} - {*lanes, "evidence"}
    return all(getattr(one, name) == getattr(other, name) for name in plain) and all(
        scores_equal(getattr(one, name).scores, getattr(other, name).scores)
        and dataclasses.replace(getattr(one, name), scores=SMALL.baseline.scores).__dict__
        == dataclasses.replace(getattr(other, name), scores=SMALL.baseline.scores).__dict__
        for name in lanes
    )


def test_what_is_written_is_read(folder: Path) -> None:
    found = read_cycle(folder)
    assert same(found, SMALL)
    assert set(found.evidence) == {"events.jsonl", OUTCOMES}
    assert found.changed == ()


def test_the_same_cycle_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = made.written(SMALL, tmp_path / "again")
    assert [(folder / name).read_bytes() for name in (CYCLE, OUTCOMES)] == [(again / name).read_bytes() for name in (CYCLE, OUTCOMES)]


def test_what_did_not_come_about_has_no_scores(tmp_path: Path) -> None:
    """One infrastructure error and one outcome that is missing altogether."""
    complete, infra = SMALL.candidate.scores.complete.copy(), SMALL.candidate.scores.infra.copy()
    complete[0, :2], infra[0, 0] = False, True
    found = read_cycle(made.written(made.with_scores(SMALL, "candidate", complete=complete, infra=infra), tmp_path / "cycle"))
    scores = found.candidate.scores
    assert scores.infra.sum() == 1
    assert (~scores.complete).sum() == 2
    assert scores.attempts[0, :2].tolist() == [0.0, 0.0]


def test_without_control_or_gate(tmp_path: Path) -> None:
    found = read_cycle(made.written(dataclasses.replace(SMALL, control=None, gate=None), tmp_path / "cycle"))
    assert (found.control, found.gate) == (None, None)


@pytest.mark.parametrize("change", ["edited", "gone", "a link out"])
def test_changed_evidence_is_told(folder: Path, change: str) -> None:
    path = folder / "events.jsonl"
    content = path.read_bytes()
    path.unlink()
    if change == "edited":
        path.write_bytes(content + b" ")
    elif change == "a link out":
        (folder.parent / "events.jsonl").write_bytes(content)
        path.symlink_to(folder.parent / "events.jsonl")
    assert read_cycle(folder).changed == ("events.jsonl",)


WRONG_LINES: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "twice": (lambda lines: lines.append(lines[0]), "line 361: got task 'task 0' a second time"),
    "an unknown task": (lambda lines: lines[3].update(task="task 99"), "line 4: got lane baseline, seed 11, task 'task 99'"),
    "an unknown seed": (lambda lines: lines[3].update(seed=5), "line 4: got lane baseline, seed 5"),
    "too many attempts": (lambda lines: lines[3].update(attempts=4), "line 4: got 4 attempts; allowed: 1 to 3"),
    "no attempt": (lambda lines: lines[3].update(attempts=0), "line 4: got 0 attempts"),
    "an unknown field": (lambda lines: lines[3].update(colour="red"), "line 4: colour: got an unknown field"),
    "a number for yes": (lambda lines: lines[3].update(semantics=1), "line 4: semantics: got 1"),
    "negative tokens": (lambda lines: lines[3].update(tokens=-1.0), "line 4: tokens: got -1.0"),
    "a lane of its own": (lambda lines: lines[3].update(lane="third"), "line 4: lane: got 'third'"),
}


@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_wrong_outcomes(folder: Path, wrong: str) -> None:
    edit, said = WRONG_LINES[wrong]
    outcomes(folder, edit)
    with pytest.raises(ContractError) as refused:
        read_cycle(folder)
    assert said in str(refused.value)


WRONG_RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no candidate": (lambda value: value["lanes"].pop("candidate"), "lacks candidate"),
    "a task twice": (lambda value: value["tasks"].append(value["tasks"][0]), "each task once"),
    "a seed twice": (lambda value: value["lanes"]["baseline"]["trained"].append(value["lanes"]["baseline"]["trained"][0]), "seed once"),
    "a path outside": (lambda value: value["evidence"].update({"../x": "0" * 64}), "a path inside the folder"),
    "an absolute path": (lambda value: value["evidence"].update({"/etc/passwd": "0" * 64}), "a path inside the folder"),
    "no horizon": (lambda value: value.update(max_milliseconds=0.0), "max_milliseconds"),
    "an unknown field": (lambda value: value.update(colour="red"), "colour: got an unknown field"),
    "another version": (lambda value: value.update(version=2), "version: got 2"),
}


@pytest.mark.parametrize("wrong", WRONG_RECORDS)
def test_wrong_records(folder: Path, wrong: str) -> None:
    edit, said = WRONG_RECORDS[wrong]
    record(folder, edit)
    with pytest.raises(UserError) as refused:
        read_cycle(folder)
    assert said in str(refused.value)


def test_outcomes_of_another_cycle(folder: Path) -> None:
    (folder / OUTCOMES).write_bytes(b"")
    with pytest.raises(ContractError, match=r"as cycle\.json says"):
        read_cycle(folder)


@pytest.mark.parametrize("content", [b"[]\n", b"{\n", b"\xff\n", b'{"lane": NaN}\n'])
def test_lines_that_are_no_objects(folder: Path, content: bytes) -> None:
    (folder / OUTCOMES).write_bytes(content)
    record(folder, lambda value: value.update(outcomes_sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(ContractError, match="line 1"):
        read_cycle(folder)
