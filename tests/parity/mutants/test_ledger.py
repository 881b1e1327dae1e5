"""What a campaign knows, on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.errors import UserError
from parity.mutants import ledger as module
from parity.mutants.ledger import Ledger
from tests.parity.mutants.askables import CRASHED, GREEN, HUNG, RED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "asked.jsonl"


def kept(path: Path, *keys: str) -> list[bool]:
    with Ledger(path) as ledger:
        return [ledger.get(key) is not None for key in keys]


def test_what_was_added_is_there_the_next_time(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {"mutant": "m"}, RED)
        assert ledger.get("a") == RED
    with Ledger(path) as ledger:
        assert ledger.get("a") == RED
        assert ledger.get("b") is None


def test_a_line_is_whole_on_the_disk_when_add_returns(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {"mutant": "m"}, GREEN)
        assert json.loads(path.read_text().splitlines()[-1])["mutant"] == "m"


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_cut_off(path: Path, cut: int) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {}, GREEN)
        ledger.add("b", {}, GREEN)
    path.write_bytes(path.read_bytes()[:-cut])
    with Ledger(path) as ledger:
        assert ledger.get("a") == GREEN
        assert ledger.get("b") is None
        ledger.add("c", {}, GREEN)
    assert kept(path, "a", "b", "c") == [True, False, True]


@pytest.mark.parametrize("line", ["{}", "[]", "null", "no JSON", '{"key": "x", "facts": {"ended": "flew"}}', '{"key": [], "facts": {}}'])
def test_a_line_that_is_none_is_left_out(path: Path, line: str) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {}, GREEN)
    path.write_text(f"{line}\n{path.read_text()}")
    assert kept(path, "a", "x") == [True, False]


def test_what_crashed_or_hung_is_asked_again_by_the_next_campaign_alone(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {}, CRASHED)
        ledger.add("b", {}, HUNG)
        assert ledger.get("a") == CRASHED
        assert ledger.get("b") == HUNG
    assert kept(path, "a", "b") == [False, False]


def test_what_does_not_last_is_known_to_this_campaign_alone(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {}, GREEN, lasting=False)
        assert ledger.get("a") == GREEN
    assert kept(path, "a") == [False]


def test_fresh_forgets(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add("a", {}, GREEN)
    with Ledger(path, fresh=True) as ledger:
        assert ledger.get("a") is None
    assert kept(path, "a") == [False]


def test_two_campaigns_do_not_write_to_one_file(path: Path) -> None:
    with Ledger(path), pytest.raises(UserError, match=r"another campaign writes to .*; wait for it, or .*--state"):
        Ledger(path)
    assert kept(path, "a") == [False]


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        Ledger(tmp_path / "file" / "asked.jsonl")


def test_a_file_that_grew_too_large_loses_its_older_half(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(path) as ledger:
        for key in "abcd":
            ledger.add(key, {}, GREEN)
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    assert kept(path, *"abcd") == [False, False, True, True]
    assert len(path.read_text().splitlines()) <= 2
