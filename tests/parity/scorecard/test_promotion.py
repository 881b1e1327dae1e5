"""The four verdicts, from made-up cycles, and what moves them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.scorecard.cycle import Cycle
from parity.scorecard.promotion import judge
from parity.scorecard.promotion_metrics import paired
from parity.scorecard.promotion_needed import needed
from parity.scorecard.promotion_rule import read_rule
from parity.scorecard.promotion_verdict import POOLED, Measured, Verdict
from parity.scorecard.statistics.bounds import t_bounds
from parity.scorecard.statistics.sums import Sums
from parity.scorecard.statistics.sums import pooled as pooled_sums
from tests.parity.scorecard import made_cycles as made

RULE = read_rule()
FAST = RULE.model_copy(update={"bounds": RULE.bounds.model_copy(update={"resamples": 1000})})
EQUAL = made.pair()


def pooled(verdict: Verdict, metric: str) -> Measured:
    [one] = [one for one in verdict.measured if one.scope == POOLED and one.metric == metric]
    return one


def test_equal_backends_are_promoted() -> None:
    verdict = judge(EQUAL, RULE)
    assert (verdict.decision, verdict.exit_code) == ("PROMOTE", 0)
    assert verdict.binding == made.BINDING
    assert verdict.questions is not None
    assert not verdict.questions.decisive


def test_the_same_cycles_give_the_same_verdict() -> None:
    assert judge(EQUAL, FAST) == judge(EQUAL, FAST)


def test_deltas_are_those_of_the_scores() -> None:
    """Semantics, attempts and tokens of both lanes, recomputed from the outcomes."""
    verdict = judge(EQUAL, FAST)
    left = np.concatenate([cycle.baseline.scores.semantics for cycle in EQUAL])
    right = np.concatenate([cycle.candidate.scores.semantics for cycle in EQUAL])
    tolerance = 64 * np.finfo(float).eps
    assert pooled(verdict, "semantics").delta == pytest.approx(right.mean() - left.mean(), rel=tolerance, abs=tolerance)
    attempts = np.where(right, 1.0, 3.0).mean() - np.where(left, 1.0, 3.0).mean()  # a stall after 2 counts the 3 that there were to use
    assert pooled(verdict, "attempts").loss == pytest.approx(attempts, rel=tolerance, abs=tolerance)
    tokens = [np.concatenate([getattr(cycle, lane).scores.tokens for cycle in EQUAL]).sum() for lane in ("baseline", "candidate")]
    assert pooled(verdict, "tokens").delta == pytest.approx(tokens[1] / tokens[0] - 1, rel=tolerance, abs=tolerance)


def test_few_tasks_hold_and_say_how_many_would_decide() -> None:
    verdict = judge(made.pair(tasks=160, discordance=0.15), FAST)
    assert (verdict.decision, verdict.exit_code) == ("HOLD", 11)
    assert verdict.tasks_needed is not None
    assert verdict.tasks_needed > 160
    assert f"about {verdict.tasks_needed} tasks would decide" in verdict.reasons[-1]
    assert judge(made.pair(tasks=4 * verdict.tasks_needed, discordance=0.15), FAST).decision == "PROMOTE"


def test_seeds_that_differ_hold_and_say_that_no_tasks_would_decide() -> None:
    """One training run of three loses 8 points, the others nothing: more tasks say nothing more of other runs."""

    def one_bad_run(cycle: Cycle) -> Cycle:
        semantics = cycle.baseline.scores.semantics.copy()
        row = semantics[2]
        row[np.flatnonzero(row)[:64]] = False
        return made.with_lane(cycle, "candidate", scores=made.scores(semantics))

    verdict = judge([one_bad_run(cycle) for cycle in EQUAL], FAST)
    assert verdict.decision == "HOLD"
    assert verdict.tasks_needed is None
    assert verdict.seeds_needed is not None
    assert f"about {verdict.seeds_needed} seeds a cycle" in verdict.reasons[-1]


def test_a_true_loss_is_rejected() -> None:
    verdict = judge(made.pair(loss=0.07), FAST)
    assert (verdict.decision, verdict.exit_code) == ("REJECT", 10)


def test_a_loss_that_no_veto_sees_is_rejected_where_it_is_shown() -> None:
    """Twice the tokens: over the margin in every bound."""
    cycles = [made.with_scores(cycle, "candidate", tokens=cycle.candidate.scores.tokens * 2) for cycle in EQUAL]
    verdict = judge(cycles, FAST)
    assert verdict.decision == "REJECT"
    assert verdict.vetoes == ()
    assert verdict.reasons == tuple(reason for reason in verdict.reasons if reason.startswith("tokens: the loss is +"))


@pytest.mark.parametrize(("incident", "said"), [("escapes", "sandbox"), ("nans", "NaN"), ("parity_breaks", "broke parity")])
def test_one_incident_is_a_veto(incident: str, said: str) -> None:
    verdict = judge([EQUAL[0], made.with_lane(EQUAL[1], "candidate", **{incident: 1})], FAST)
    assert verdict.decision == "REJECT"
    assert [veto for veto in verdict.vetoes if said in veto] == [f"cycle second: the candidate {_words(incident)} 1 time(s)"]


def _words(incident: str) -> str:
    return {"escapes": "left the sandbox", "nans": "met NaN or infinity", "parity_breaks": "broke parity"}[incident]


def test_mcnemar_on_the_registered_seed_of_one_cycle_is_a_veto() -> None:
    """Only the smallest training seed is asked: the same loss of another run is none."""

    def lossy(row: int) -> list[Cycle]:
        semantics = EQUAL[0].baseline.scores.semantics.copy()
        semantics[row, np.flatnonzero(semantics[row])[:12]] = False
        return [made.with_lane(EQUAL[0], "candidate", scores=made.scores(semantics)), EQUAL[1]]

    assert judge(lossy(1), FAST).vetoes == ()
    [veto] = judge(lossy(0), FAST).vetoes
    assert re.search(r"cycle first: McNemar .* 12 tasks lost, 0 won \(p = 0.00024", veto)


def test_a_family_that_is_lost_is_a_veto() -> None:
    """One family in twenty down by half: 2.5 points in all, within the margin."""

    def lossy(cycle: Cycle) -> Cycle:
        semantics = cycle.baseline.scores.semantics.copy()
        family = np.flatnonzero(np.array(cycle.families) == made.FAMILIES[3])
        semantics[np.ix_([1, 2], family)] = False
        return made.with_lane(cycle, "candidate", scores=made.scores(semantics))

    verdict = judge([lossy(cycle) for cycle in EQUAL], FAST)
    assert verdict.decision == "REJECT"
    [veto] = verdict.vetoes
    assert veto.startswith("family family 03 lost ")


def test_a_decisive_win_is_said() -> None:
    """The lanes of a loss, the other way round."""
    cycles = [
        dataclasses.replace(
            cycle,
            baseline=dataclasses.replace(cycle.baseline, scores=cycle.candidate.scores),
            control=dataclasses.replace(cycle.baseline, scores=cycle.candidate.scores),
            candidate=dataclasses.replace(cycle.candidate, scores=cycle.baseline.scores),
        )
        for cycle in made.pair(loss=0.08)
    ]
    verdict = judge(cycles, FAST)
    assert verdict.decision == "PROMOTE"
    assert verdict.questions is not None
    assert verdict.questions.decisive
    assert verdict.questions.plateau


def test_runs_that_differ_are_no_plateau() -> None:
    semantics = EQUAL[0].baseline.scores.semantics.copy()
    semantics[0, :100] = True
    verdict = judge([made.with_lane(EQUAL[0], "baseline", scores=made.scores(semantics)), EQUAL[1]], FAST)
    assert verdict.questions is not None
    assert not verdict.questions.plateau


@settings(max_examples=15)
@given(lost=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19)), min_size=1, max_size=12, unique=True), incident=st.booleans())
def test_worse_evidence_of_a_whole_family_never_promotes_what_was_not(lost: list[tuple[int, int]], incident: bool) -> None:
    """From a candidate that is held or rejected, answers are taken away: it's not promoted then."""
    before = made.pair(tasks=200, discordance=0.1, loss=0.03)
    assert judge(before, FAST).decision != "PROMOTE"
    semantics = before[0].candidate.scores.semantics.copy()
    for seed, family in lost:
        semantics[seed, family::20] = False
    worse = made.with_lane(before[0], "candidate", scores=made.scores(semantics), nans=int(incident))
    assert judge([worse, before[1]], FAST).decision in (("REJECT",) if incident else ("HOLD", "REJECT"))


@settings(max_examples=10)
@given(metric=st.sampled_from(["syntax", "semantics", "stall_rate", "attempts", "tokens"]), share=st.floats(0.0, 1.0))
def test_a_narrower_margin_never_promotes_what_a_wider_one_does_not(metric: str, share: float) -> None:
    order = {"REJECT": 0, "HOLD": 1, "PROMOTE": 2}
    margins = RULE.margins.model_copy(update={metric: RULE.margins.of(metric) * share})
    narrow = judge(EQUAL, FAST.model_copy(update={"margins": margins}))
    assert order[narrow.decision] <= order[judge(EQUAL, FAST).decision]
    assert (narrow.decision == "PROMOTE") == all(
        one.upper < margins.of(one.metric) for one in judge(EQUAL, FAST).measured if one.margin is not None
    )  # fmt: skip


def test_each_scope_has_its_own_confidence() -> None:
    """0.05 in a cycle, 0.025 pooled; the pooled upper bound is the t-bound at that level or wider."""
    verdict = judge(EQUAL, FAST)
    assert {(one.scope, one.alpha) for one in verdict.measured} == {("first", 0.05), ("second", 0.05), (POOLED, 0.025)}
    sums = pooled_sums([paired(cycle, cycle.baseline, cycle.candidate).sums for cycle in EQUAL])
    assert [one.t_upper for one in verdict.measured if one.scope == POOLED] == t_bounds(sums, 0.025).upper.tolist()


def test_what_an_incomplete_pair_holds_changes_nothing() -> None:
    """A lane's values mean nothing where it did not come to an end, whichever lane it is."""

    def told(lane: str, value: bool) -> Verdict:
        scores = getattr(EQUAL[0], lane).scores
        complete, semantics = scores.complete.copy(), scores.semantics.copy()
        complete[:, :6], semantics[:, :6] = False, value
        return judge([made.with_scores(EQUAL[0], lane, complete=complete, semantics=semantics), EQUAL[1]], FAST)

    for lane in ("baseline", "candidate"):
        assert told(lane, True) == told(lane, False)
        assert told(lane, True).decision == "PROMOTE"


def test_one_cycle_over_the_margin_is_left_to_the_pooled_evidence() -> None:
    """A cycle's loss just over its margin could hardly be shown there, and needs not be: the pooled loss decides how many tasks."""
    generator = np.random.default_rng(8)
    sums = Sums(generator.normal(0.0, 1.0, (6, 6, 20)), np.full((6, 6, 20), 40.0))
    measured = judge(EQUAL, FAST).measured
    [cycle] = [one for one in measured if one.scope == "first" and one.metric == "semantics"]
    over = cycle.model_copy(update={"loss": 0.0501, "upper": 0.08, "passed": False})
    near = pooled(judge(EQUAL, FAST), "semantics").model_copy(update={"loss": 0.04, "upper": 0.06, "passed": False})
    scopes = [("first", sums), (POOLED, sums)]
    alone = needed([near], scopes, tasks=800, seeds=3, rule=FAST)
    assert alone.tasks is not None
    assert needed([over, near], scopes, tasks=800, seeds=3, rule=FAST) == alone
    shown = over.model_copy(update={"scope": POOLED})
    assert needed([shown], scopes, tasks=800, seeds=3, rule=FAST) != alone
