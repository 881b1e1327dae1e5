"""docs/evidence.md says what docs/evidence.json holds; and the tables count right."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import UserError
from parity.mutants.baselines import record, table
from parity.mutants.baselines.record import Alarm, Evidence, Seen
from parity.mutants.baselines.seeing import Sight

DOCS = Path(__file__).parents[4] / "docs"
SEEN, RED, MISSED, NONE = Sight.SEEN, Sight.RED_ANYWAY, Sight.MISSED, Sight.NOT_APPLICABLE


def seen(name: str, check: str, hard: Sight, ordinary: Sight, *, gate: str = "killed", area: str = "rope", failed: str = "") -> Seen:
    sights = [dict.fromkeys(table.NAMES, sight) for sight in (hard, ordinary)]
    return Seen(
        name=name,
        what=f"what | {name}",
        area=area,
        check=check,
        stacks=("one",),
        gate=gate,
        hard=sights[0],
        ordinary=sights[1],
        failed=failed,
    )


EVIDENCE = Evidence(
    sources="5" * 64,
    versions={"torch": "2.13.0"},
    machine={"system": "s", "processor": "p", "python": "3.11"},
    profile="quick",
    seed=7,
    mutants=(
        seen("in-both", "a.rope", SEEN, SEEN),
        seen("hard-alone", "a.rope", SEEN, MISSED),
        seen("red-anyway", "a.rope", RED, MISSED),
        seen("in-files", "e.saved", NONE, NONE, area=""),
        seen("lives", "c.llama", MISSED, MISSED, gate="survived"),
        seen("stale", "c.llama", MISSED, MISSED, failed="no | such text"),
    ),
    alarms=(
        Alarm(unit="a.rope", inputs="hard", rule="assert_close", compared=10, failing=3),
        Alarm(unit="c.llama", inputs="hard", rule="assert_close", compared=5, failing=0),
        Alarm(unit="ordinary.a.rope", inputs="ordinary", rule="assert_close", compared=2, failing=0),
    ),
)


def row(text: str, start: str, number: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in lines[number].replace("\\|", "!").strip("|").split("|")]


def test_the_page_is_made_of_the_data() -> None:
    assert table.made(DOCS / "evidence.md") == table.tables(record.read(DOCS / "evidence.json")), "run benchmarks/evidence.py --tables"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    record.write(EVIDENCE, tmp_path / "evidence.json")
    assert record.read(tmp_path / "evidence.json") == EVIDENCE


def test_mutants_are_counted_by_tier_and_inputs() -> None:
    text = table.tables(EVIDENCE)
    rules = len(table.NAMES)
    assert row(text, "A: primitives") == ["A: primitives", "3", "3 of 3", *["2 (1) of 3"] * rules]
    assert row(text, "A: primitives", 1) == ["A: primitives", "3", "3 of 3", *["1 of 3"] * rules]
    assert row(text, "E: artifacts") == ["E: artifacts", "1", "1 of 1", *["n/a"] * rules]
    assert row(text, "C: graphs") == ["C: graphs", "1", "0 of 1", *["0 of 1"] * rules]
    assert row(text, "all") == ["all", "5", "4 of 5", *["2 (1) of 4"] * rules]


def test_false_alarms_are_counted_by_check_and_tensor() -> None:
    assert row(table.tables(EVIDENCE), "assert_close", 1) == ["assert_close", "1 of 2", "3 of 15", "0 of 1", "0 of 2"]
    assert row(table.tables(EVIDENCE), "loss curves", 1) == ["loss curves", "0 of 0", "0 of 0", "0 of 0", "0 of 0"]


def test_what_the_gate_alone_caught_is_listed() -> None:
    listed = table.tables(EVIDENCE).partition("no rule saw")[2]
    assert "`red-anyway` | A | what \\| red-anyway |" in listed
    assert not any(f"`{name}`" in listed for name in ("in-both", "hard-alone", "in-files", "lives"))
    assert row(listed, "`stale`") == ["`stale`", "no ! such text"]


def test_the_tables_are_put_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "evidence.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.put(EVIDENCE, page)
    table.put(EVIDENCE, page)
    assert page.read_text() == f"before\n{table.BEGIN}\n\n{table.tables(EVIDENCE)}\n{table.END}\nafter\n"
    assert table.made(page) == table.tables(EVIDENCE)


def test_a_page_without_the_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "evidence.md"
    page.write_text("nothing\n")
    with pytest.raises(UserError, match="must have the lines"):
        table.put(EVIDENCE, page)
    assert page.read_text() == "nothing\n"
