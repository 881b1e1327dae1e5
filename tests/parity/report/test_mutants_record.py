"""The record of a campaign: totals, exit code, places, schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from parity.mutants.verdicts import Verdict
from parity.report import mutants as report
from parity.report.mutants import Localised, Totals
from tests.parity.report.campaigns import BUGS, OUTCOMES, campaign

SCHEMA = Path(__file__).parents[3] / "docs" / "mutants.schema.json"
WRITE = (
    'python -c "from pathlib import Path; from parity.report.mutants import json_schema; '
    "Path('docs/mutants.schema.json').write_text(json_schema())\""
)
WHOLE = campaign(*OUTCOMES)
BY_NAME = {one.mutant.name: one for one in OUTCOMES}


def test_the_published_schema_is_the_records() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == report.json_schema(), f"run: {WRITE}"


def test_a_record_is_what_the_schema_says(tmp_path: Path) -> None:
    report.write(WHOLE, tmp_path / "out.json")
    jsonschema.validate(json.loads((tmp_path / "out.json").read_text()), json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_totals() -> None:
    assert WHOLE.totals == Totals(killed=5, survived=2, crashed=1, hung=1, stale=1, equivalent=1, not_applicable=1)


def test_places() -> None:
    assert WHOLE.localised == Localised(graph_mutants=4, exact=1, share=0.25)
    where = {one.name: one.where for one in WHOLE.mutants}
    assert where["killed"] is None
    assert where["elsewhere"] is not None
    assert (where["elsewhere"].found_block, where["elsewhere"].exact) == ("layers.1", False)
    assert campaign(BY_NAME["killed"]).localised.share is None


def test_the_first_tap_is_the_operation_where_bisect_names_one() -> None:
    taps = {one.name: one.first_tap for one in WHOLE.mutants}
    assert (taps["killed"], taps["located"], taps["survived"]) == ("y", "layers.1/attention_norm", "")


def test_why_one_was_not_killed() -> None:
    reasons = {one.name: one.reason for one in WHOLE.mutants}
    assert reasons["killed"] == ""
    assert "deadline" in reasons["hung"]
    assert "signal 11" in reasons["crashed"]
    assert reasons["stale"] == "the text is gone"
    assert reasons["survived"].startswith("every check is green")
    assert reasons["red"].startswith("without the mutant it is fail")
    assert set(WHOLE.red_without) == {"a.matmul"}


def test_bugs() -> None:
    assert {bug.id: bug.verdict for bug in WHOLE.bugs} == {
        "real": "killed", "alive": "survived", "same": "equivalent", "else": "not_applicable", "undone": "not_asked",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "code"), [(one.mutant.name, int(one.verdict is not Verdict.KILLED)) for one in OUTCOMES])
def test_exit_code(name: str, code: int) -> None:
    results = (report.result(BY_NAME[name], BUGS),)
    assert report.exit_code(results, (), report.red_without(results)) == code


def test_a_bug_that_has_no_mutant_and_no_reason_is_not_green() -> None:
    results = (report.result(BY_NAME["killed"], BUGS),)
    undone = tuple(report.bug_result(bug, {}) for bug in BUGS.values() if bug.id == "undone")
    assert report.exit_code(results, undone, {}) == 1


def test_a_check_that_is_red_without_a_mutant_is_not_green_though_another_killed_it() -> None:
    assert report.exit_code((report.result(BY_NAME["killed"], BUGS),), (), {"a.exp": "it is red"}) == 1
