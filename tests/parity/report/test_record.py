"""The record: its exit code, its schema, and numbers that JSON can't hold."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from parity.report import record
from parity.report.record import Controls, Result, Run, StackRecord, Status, TensorResult, Timing, exit_code

SCHEMA = Path(__file__).parents[3] / "docs" / "run.schema.json"


def result(status: Status, **more: Any) -> Result:
    values: dict[str, Any] = {
        "id": "a.exp", "tier": "A", "title": "exp, no worse than declared", "stacks": ("one",), "question": "precision",
        "device": ("CPU",), "dtype": "float32", "status": status,
    }  # fmt: skip
    return Result(**(values | more))


def run(*results: Result, problems: tuple[str, ...] = ()) -> Run:
    return Run(
        twostack="0.1.0", started="2031-01-31T12:00:00+00:00", machine={"system": "Linux"}, tiers=("A",), profile="quick", seed=7,
        false_alarm=1e-6, stacks=(StackRecord(name="one", device="CPU", lane="research", versions={"numpy": "2"}),), results=results,
        problems=problems, timing=Timing(wall=3.0, busy=2.0, by_stack={"one": 2.0}, start=1.0), exit_code=exit_code(results, problems),
    )  # fmt: skip


CODES = {
    Status.PASS: 0,
    Status.WAIVED: 0,
    Status.NOT_APPLICABLE: 4,
    Status.LEFT_TO_NIGHTLY: 4,
    Status.UNCOVERED_ALLOWED: 4,
    Status.NOT_COVERED: 4,
    Status.ERROR: 3,
    Status.FAIL: 1,
}
UNASKED = (Status.NOT_APPLICABLE, Status.LEFT_TO_NIGHTLY, Status.UNCOVERED_ALLOWED)
"""Alone they are no pass; beside one they change nothing."""
ORDER = (1, 3, 4)


@pytest.mark.parametrize("status", Status)
def test_exit_code_of_one(status: Status) -> None:
    assert exit_code((result(status),), ()) == CODES[status]


@pytest.mark.parametrize("some", [some for n in (2, 3, 4) for some in itertools.combinations(Status, n)])
def test_of_several_the_first_in_the_order_1_3_4(some: tuple[Status, ...]) -> None:
    red = {CODES[status] for status in some if status not in UNASKED} - {0}
    passed = {Status.PASS, Status.WAIVED} & set(some)
    expected = next((code for code in ORDER if code in red), 0 if passed else 4)
    for order in (some, some[::-1]):
        assert exit_code(tuple(result(status) for status in order), ()) == expected


def test_nothing_is_not_a_pass() -> None:
    assert exit_code((), ()) == 4


def test_a_stale_waiver_is_a_divergence() -> None:
    assert exit_code((result(Status.PASS),), ("the waiver of a.exp for one expired",)) == 1
    assert exit_code((result(Status.ERROR),), ("the waiver of a.exp for one expired",)) == 1


def test_the_schema_file_is_the_exported_one() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == record.json_schema()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(record.json_schema()))


FULL = result(
    Status.FAIL,
    observed=float("inf"),
    bound=1e-7,
    headroom=0.0,
    bound_source="gamma_3 |A||B|",
    examples=12,
    reason="y[0]: absolute difference inf",
    snippet="import numpy as np\n",
    controls=Controls(applied=3, caught=3),
    tensors=(
        TensorResult(tensor="y", observed=float("nan"), bound=1.0, unit="ulp", bound_source="s", headroom=float("-inf"), case="c"),
        TensorResult(tensor="z", observed=0.0, bound=0.0, unit="ulp", bound_source="s", headroom=None, case="c"),
    ),
)


def test_a_record_is_valid_json_of_its_schema_whatever_was_observed(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record.write(run(FULL, result(Status.NOT_APPLICABLE, reason="no float64"), problems=("a waiver expired",)), path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(written)
    assert written["results"][0]["observed"] == "Infinity"
    assert written["results"][0]["tensors"][0]["observed"] == "NaN"
    assert written["schema_version"] == 1


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    one = run(result(Status.PASS, observed=float("-inf")))
    record.write(one, path)
    assert Run.model_validate_json(path.read_bytes()) == one


@pytest.mark.parametrize("wrong", [{"status": "fine"}, {"colour": "red"}, {"observed": "much"}])
def test_the_schema_refuses_what_is_no_record(wrong: dict[str, object]) -> None:
    document = json.loads(run(result(Status.PASS)).model_dump_json())
    document["results"][0] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_a_record_that_can_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.write(run(result(Status.PASS)), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_overhead_is_what_remains_while_no_stack_was_busy() -> None:
    assert Timing(wall=3.0, busy=2.0, by_stack={}, start=9.0).overhead == 0.5
    assert Timing(wall=3.0, busy=0.0, by_stack={}, start=0.0).overhead is None
