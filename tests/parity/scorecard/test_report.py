"""The report: rates by hand-counted runs, censored medians, and what infra errors leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.scorecard.conditions import Ask, BrokeDown, Outcome
from parity.scorecard.event_log import FILE, read_events
from parity.scorecard.event_scores import Judges
from parity.scorecard.report import Summary, _quantile, summarise
from parity.scorecard.report_cycle import _scores
from parity.scorecard.runner_rescore import Rescored, rescore
from parity.scorecard.spec import json_schema
from parity.scorecard.task import Language
from parity.scorecard.validators.form import Form, quality
from parity.scorecard.validators.judge import Judged
from parity.scorecard.validators.spec import Validator
from tests.parity.scorecard.scorecard_cases import JUDGES, quiet, runner, said_of, scorecard, scripted

WORDS = {"t0": "alpha", "t1": "beta", "t2": "gamma"}
LOST = BrokeDown(error="dropped", message="gone", latency_ms=5.0)


def say(ask: Ask) -> Outcome | str:
    """Task 0: right at once. Task 1: right at the second attempt, slowly. Task 2: seed 1 stalls, seed 2 is lost."""
    if ask.asked.task == "t2":
        return LOST if ask.asked.seed == 2 else "no"
    if ask.asked.task == "t1" and ask.asked.attempt == 1:
        return said_of("be", latency_ms=100.0)
    return WORDS[ask.asked.task]


def ran(folder: Path) -> Summary:
    made = runner(scorecard(folder), folder / "out", {"c": scripted(say)})
    made.run()
    made.log.close()
    [summary] = summarise(made.manifest, made.scorecard, made.log.events).summaries
    return summary


def test_counted_by_hand(tmp_path: Path) -> None:
    one = ran(tmp_path)
    assert (one.episodes, one.unfinished, one.infra_errors) == (5, 1, {"dropped": 1})
    assert (one.compile_pass_1, one.compile_pass_n, one.task_success, one.stall_rate) == (4 / 5, 4 / 5, 4 / 5, 1 / 5)
    assert one.repair_depth_mean == 2 / 4
    assert one.attempts_mean == (1 + 1 + 2 + 2 + 2) / 5
    assert one.time_to_first_valid_ms_p50 == 110.0  # 10, 10, 110, 110, and one that never came
    assert (one.latency_ms_p50, one.latency_ms_p95) == (10.0, 100.0)
    assert (one.tokens_in, one.tokens_out) == (8 * 5, 8 * 7)
    assert one.generated_tokens_per_second == pytest.approx(56 / 0.26, rel=1e-12)  # a sum of eight in another order
    assert {family.family: (family.episodes, family.task_success) for family in one.families} == {"f0": (3, 2 / 3), "f1": (2, 1.0)}


def test_nothing_yet_is_no_rate(tmp_path: Path) -> None:
    made = runner(scorecard(tmp_path), tmp_path / "out", {"c": scripted(say)})
    [one] = summarise(made.manifest, made.scorecard, []).summaries
    assert (one.episodes, one.unfinished) == (0, 6)
    assert one.task_success is one.time_to_first_valid_ms_p50 is one.latency_ms_p95 is one.generated_tokens_per_second is None
    made.log.close()


@given(values=st.lists(st.integers(0, 50), min_size=1), share=st.sampled_from([0.5, 0.95]))
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(values: list[int], share: float) -> None:
    ascending = sorted(map(float, values))
    found = _quantile(ascending, share)
    assert found in ascending
    assert sum(value <= found for value in ascending) >= share * len(values)
    assert all(sum(value <= less for value in ascending) < share * len(values) for less in ascending if less < found)


def test_scores_of_a_cycle(tmp_path: Path) -> None:
    ran(tmp_path)
    card = scorecard(tmp_path)
    found = _scores("c", card, [2, 1], read_events(tmp_path / "out" / FILE), {("t2", 2)})
    assert found.complete.tolist() == [[True, True, False], [True, True, True]]
    assert found.infra.tolist() == [[False, False, True], [False, False, False]]
    assert found.success.tolist() == found.valid.tolist() == [[True, True, False], [True, True, False]]
    assert found.stalled.tolist() == [[False, False, False], [False, False, True]]
    assert found.attempts.tolist() == [[1, 2, 0], [1, 2, 2]]
    assert found.milliseconds.tolist() == [[10, 110, 0], [10, 110, 20]]
    assert found.tokens.tolist() == [[7, 14, 0], [7, 14, 14]]


def accepts(word: str) -> Judges:
    """Judges that accept one answer, and nothing else."""

    def validate(validator: Validator, answer: str) -> Judged:
        return Judged.passed() if answer == word else Judged.failed("no")

    def form(answer: str, language: Language) -> Form:
        return quality(answer, language)

    return Judges(validate=validate, form=form)


@pytest.mark.parametrize(
    ("judges", "expected"),
    [(JUDGES, Rescored(answers=8, changed=0, left_out=0, wanting=0)),
     (accepts("be"), Rescored(answers=8, changed=6, left_out=2, wanting=2)),
     (accepts("no"), Rescored(answers=8, changed=7, left_out=1, wanting=2))],
    ids=["the same", "be", "no"],
)  # fmt: skip
def test_rescoring_judges_again_and_generates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judges: Judges, expected: Rescored
) -> None:
    """Two answers `be` are followed by `beta`; two `alpha` stand alone; `no` came twice."""
    ran(tmp_path)
    log = (tmp_path / "out" / FILE).read_bytes()
    monkeypatch.setattr("parity.scorecard.runner_rescore.read_run", lambda folder: (None, scorecard(tmp_path)))
    found = rescore(tmp_path / "out", judges, quiet())
    assert (tmp_path / "out" / FILE).read_bytes() == log
    again = read_events(tmp_path / "out" / "rescored.jsonl")
    assert len(again) == 8 + 1 - found.left_out
    assert found == expected


def test_every_field_of_the_schema_is_described() -> None:
    schema = json.loads(json_schema())
    for name, definition in schema["$defs"].items():
        for field, value in definition.get("properties", {}).items():
            assert "description" in value or field == "kind", f"{name}.{field}"
