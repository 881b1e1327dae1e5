"""The simulation: its truth is what it says, it judges as the rule does, and bounds hold as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest

from parity.scorecard.promotion import judge
from parity.scorecard.promotion_rule import read_rule
from parity.scorecard.promotion_verdict import Verdict
from parity.scorecard.simulated import World, draw
from parity.scorecard.simulated_coverage import coverage
from parity.scorecard.simulated_cycles import cycles_of
from parity.scorecard.simulated_rule import decide
from parity.scorecard.simulated_rule import judge as judge_draws
from parity.scorecard.simulation import row, tables
from parity.scorecard.statistics.bounds import family_weights

RULE = read_rule()
FAST = RULE.model_copy(update={"bounds": RULE.bounds.model_copy(update={"resamples": 1000})})


def generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


@pytest.mark.parametrize(
    "world",
    [
        World(tasks=200, discordance=0.05, seed_sd=0.0),
        World(tasks=200, discordance=0.15, seed_sd=0.02),
        World(tasks=200, loss=0.06),
        World(tasks=100, discordance=0.05, seed_sd=0.0, control_loss=0.4),
        World(tasks=200, loss=0.03, family_sd=0.2, persistent=0.5),
    ],
    ids=["equal", "noisy", "loss", "broken harness", "families"],
)
def test_the_simulation_judges_as_the_rule_does(world: World) -> None:
    """Each drawn promotion as cycles, judged by the rule itself: the same verdict, vetoes and metrics."""
    draws = 6
    lanes = draw(world, draws, generator(3))
    weights = family_weights(world.families, resamples=1000, seed=FAST.bounds.resampling_seed)
    came = judge_draws(world, FAST, lanes, weights)
    for number in range(draws):
        verdict = judge(cycles_of(world, lanes, number), FAST)
        assert verdict.decision == _decision(came, number)
        assert any("McNemar" in reason for reason in _vetoes(verdict)) == came.mcnemar[number]
        assert any(reason.startswith("family") for reason in _vetoes(verdict)) == came.family[number]
        failed = {one.metric for one in verdict.measured if one.passed is False}
        assert failed == {name for name, bad in zip(RULE.margins.model_dump(), came.inferior[number], strict=True) if bad}


def _decision(came: object, number: int) -> str:
    names = (("control_failed", "INVALID"), ("rejected", "REJECT"), ("promoted", "PROMOTE"))
    return next((decision for name, decision in names if getattr(came, name)[number]), "HOLD")


def _vetoes(verdict: Verdict) -> tuple[str, ...]:
    """An INVALID one names none; what would have been vetoed is read off its numbers."""
    if verdict.decision != "INVALID":
        return verdict.vetoes
    veto = RULE.veto
    against = ["McNemar" for one in verdict.flips if one.mcnemar < veto.mcnemar]
    return (*against, *("family" for one in verdict.families if one.loss > veto.family_loss and one.p < veto.family_alpha))


@pytest.mark.parametrize("persistent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("discordance", [0.05, 0.2])
def test_worlds_have_the_discordance_and_loss_that_they_say(discordance: float, persistent: float) -> None:
    """Means over many pairs, within four standard errors; a task's pairs over seeds count as one (they may persist)."""
    world = World(loss=0.05, discordance=discordance, persistent=persistent, seed_sd=0.0, cycles=1)
    baseline, candidate, control = draw(world, 40, generator(5))
    flips = (baseline.semantics != control.semantics).mean(1)
    error = 4 * flips.std() / np.sqrt(flips.size)
    assert abs(flips.mean() - discordance) < error
    loss = (baseline.semantics.astype(float) - candidate.semantics).mean(1)
    assert abs(loss.mean() - 0.05) < 4 * loss.std() / np.sqrt(loss.size)


def test_more_discordance_than_there_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"discordance is 0\.6, allowed with success 0\.6: 0 to 0\.48"):
        draw(World(discordance=0.6), 1, generator(1))


@pytest.mark.parametrize(("seeds", "seed_sd", "family_sd"), [(3, 0.0, 0.0), (3, 0.02, 0.0), (3, 0.01, 0.05), (5, 0.02, 0.02)])
def test_bounds_hold_as_often_as_they_promise(seeds: int, seed_sd: float, family_sd: float) -> None:
    """Coverage of the bound that decides, of one cycle and pooled: not below what is promised by four standard errors of 400 draws."""
    world = World(tasks=200, loss=0.05, seeds=seeds, seed_sd=seed_sd, family_sd=family_sd)
    for found, alpha in zip(coverage(world, RULE, draws=400, seed=11, resamples=300), (0.05, 0.025), strict=True):
        assert found.both >= 1 - alpha - 4 * np.sqrt(alpha * (1 - alpha) / 400)
        assert found.both >= max(found.t, found.bca)


def test_a_bootstrap_over_tasks_alone_is_not_enough() -> None:
    """Why t with training seeds stands beside BCa: where runs differ, BCa over families promises 0.975 and holds far less often."""
    _, pooled = coverage(World(tasks=200, loss=0.05, seed_sd=0.05), RULE, draws=400, seed=11, resamples=300)
    assert pooled.bca < 0.9
    assert pooled.t >= 0.975 - 4 * np.sqrt(0.975 * 0.025 / 400)


def test_equal_backends_are_promoted_and_a_loss_of_five_points_is_not() -> None:
    """What margins and suite size were chosen for (docs/scorecard.md): at least 80 %, at most 2.5 %, within four standard errors."""
    equal = decide(World(seed_sd=0.005), RULE, draws=100, seed=1, resamples=1000).promoted.mean()
    assert equal > 0.8 - 4 * np.sqrt(0.8 * 0.2 / 100)
    lost = decide(World(loss=0.05, seed_sd=0.005), RULE, draws=100, seed=1, resamples=1000).promoted.mean()
    assert lost <= 0.025 + 4 * np.sqrt(0.025 * 0.975 / 100)


def test_a_table_has_shares_of_its_own_kind() -> None:
    made = tables()
    assert len({table.title for table in made}) == len(made)
    verdicts = row(made[0], World(tasks=100), RULE, 20)
    assert sum(verdicts[:4]) == pytest.approx(1.0, abs=1e-12)
    assert len(row(made[-1], World(tasks=100), RULE, 20)) == 6
