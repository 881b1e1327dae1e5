"""JUnit XML: nothing red looks green to a reader of it, whatever a worker wrote in its last words."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from parity.report import junit
from parity.report.record import Result, Status
from tests.parity.report.test_record import result, run

KIND = {
    Status.PASS: None,
    Status.FAIL: "failure",
    Status.ERROR: "error",
    Status.NOT_COVERED: "error",
    Status.WAIVED: "skipped",
    Status.NOT_APPLICABLE: "skipped",
    Status.LEFT_TO_NIGHTLY: "skipped",
    Status.UNCOVERED_ALLOWED: "skipped",
}


def written(tmp_path: Path, *results: Result, problems: tuple[str, ...] = ()) -> ElementTree.Element:
    junit.write(run(*results, problems=problems), tmp_path / "junit.xml")
    return ElementTree.parse(tmp_path / "junit.xml").getroot()


@pytest.mark.parametrize("status", Status)
def test_each_status(tmp_path: Path, status: Status) -> None:
    (case,) = written(tmp_path, result(status, reason="because", snippet="import numpy")).iter("testcase")
    kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    assert kinds == ([KIND[status]] if KIND[status] else [])
    if KIND[status]:
        assert case[0].get("message") == "because"
    if status is Status.FAIL:
        assert case[0].text == "import numpy"


def test_counts_and_names(tmp_path: Path) -> None:
    root = written(tmp_path, *(result(status, seconds=1.5) for status in Status))
    assert {name: root.get(name) for name in ("tests", "failures", "errors")} == {"tests": "8", "failures": "1", "errors": "2"}
    case = next(root.iter("testcase"))
    assert case.get("classname") == "parity.a.exp"
    assert case.get("name") == "precision float32 one@CPU"
    assert float(case.get("time") or 0) == 1.5


def test_a_stale_waiver_is_a_failure(tmp_path: Path) -> None:
    root = written(tmp_path, result(Status.PASS), problems=("the waiver of a.exp for one expired",))
    assert [failure.get("message") for failure in root.iter("failure")] == ["the waiver of a.exp for one expired"]


def test_a_cell_of_a_tier_that_has_no_check_any_more_is_shown(tmp_path: Path) -> None:
    """What coverage.json lost with a whole tier: the run's own tiers do not name it."""
    root = written(tmp_path, result(Status.PASS), result(Status.NOT_COVERED, tier="Z", id="z.gone", reason="lost"))
    assert [error.get("message") for error in root.iter("error")] == ["lost"]


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "nul \x00 and \x08", "lone \ud800", "<&\"'> ]]>", "tab\tand\nline"])
def test_any_last_words_are_well_formed(tmp_path: Path, text: str) -> None:
    root = written(tmp_path, result(Status.ERROR, reason=text), result(Status.FAIL, reason=text, snippet=text), problems=(text,))
    assert len(list(root.iter("testcase"))) == 3
