"""Bounds: against scipy and statsmodels, published examples, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from statsmodels.regression.linear_model import OLS

from parity.scorecard.statistics.bounds import bca, bca_bounds, family_weights, jackknifed, resampled, t_bounds, variance, widest
from parity.scorecard.statistics.sums import Sums, pooled

SPATIAL = np.array([48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41], dtype=float)
"""Test A of 26 neurologically impaired children: Efron & Tibshirani 1993, table 14.1."""

losses = arrays(np.float64, (3, 8), elements=st.floats(-20, 20, width=32))


def made(loss_SG: np.ndarray) -> Sums:
    return Sums(loss_SG, np.full(loss_SG.shape, 10.0))


def test_bca_on_the_spatial_test_data() -> None:
    """Efron & Tibshirani 1993, 14.2 and 14.3: variance 171.5, a = 0.061; the 90 % BCa interval of 2,000 resamples (115.8, 259.6)."""
    jackknife = np.array([np.delete(SPATIAL, number).var() for number in range(26)])
    d = jackknife.mean() - jackknife
    assert SPATIAL.var() == pytest.approx(171.5, abs=0.05)
    assert (d**3).sum() / (6 * (d**2).sum() ** 1.5) == pytest.approx(0.061, abs=0.0005)
    drawn = np.random.default_rng(3).integers(0, 26, (100_000, 26))
    found = bca(np.array(SPATIAL.var()), SPATIAL[drawn].var(1), jackknife, 0.05)
    # a quantile of 2,000 resamples has a standard error of sqrt(p (1 - p) / 2000) / density: p = 0.11 and 0.984, densities read off ours
    ordered = np.sort(SPATIAL[drawn].var(1))
    for published, ours in ((115.8, float(found.lower)), (259.6, float(found.upper))):
        p = float((ordered <= ours).mean())
        density = 0.01 / (np.quantile(ordered, min(p + 0.005, 1.0)) - np.quantile(ordered, p - 0.005))
        assert abs(published - ours) < 4 * np.sqrt(p * (1 - p) / 2000) / density


@pytest.mark.parametrize("seed", range(3))
def test_bca_is_scipy_s(seed: int) -> None:
    """The same interval from the same resamples, of a ratio over resampled families."""
    generator = np.random.default_rng(seed)
    loss, scale = generator.normal(0.3, 1.0, 20), generator.gamma(20.0, 1.0, 20)
    theirs = stats.bootstrap(
        (loss, scale), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="BCa", confidence_level=0.9, n_resamples=999,
        rng=seed,
    )  # fmt: skip
    sums = Sums(loss[None], scale[None])
    ours = bca(sums.estimate, theirs.bootstrap_distribution, jackknifed(sums), 0.05)
    np.testing.assert_allclose([ours.lower, ours.upper], theirs.confidence_interval, rtol=64 * np.finfo(float).eps)


def test_resamples_are_those_of_whole_families() -> None:
    """A weight of 2 is a family twice: the same as writing it down twice."""
    sums = made(np.random.default_rng(1).normal(size=(2, 4)))
    weights = np.array([[2.0, 0.0, 1.0, 1.0]])
    again = Sums(sums.loss_SG[:, [0, 0, 2, 3]], sums.scale_SG[:, [0, 0, 2, 3]])
    assert resampled(sums, weights)[0] == pytest.approx(float(again.estimate), rel=8 * np.finfo(float).eps)
    drawn = family_weights(4, resamples=50, seed=9)
    assert (drawn.sum(1) == 4).all()
    assert (drawn == family_weights(4, resamples=50, seed=9)).all()


def test_family_variance_is_statsmodels_cluster_variance() -> None:
    """Seeds that all lose the same: what is left is the cluster-robust variance of a mean, G / (G - 1) times the sandwich."""
    loss_G = np.random.default_rng(2).normal(size=12)
    sums = Sums(np.stack([loss_G, loss_G, loss_G]), np.ones((3, 12)))
    theirs = OLS(loss_G, np.ones(12)).fit(cov_type="cluster", cov_kwds={"groups": np.arange(12), "use_correction": False})
    assert float(variance(sums).total) == pytest.approx(float(theirs.bse[0]) ** 2 * 12 / 11, rel=1e3 * np.finfo(float).eps)


def test_t_bound_on_students_sleep_data() -> None:
    """Student 1908, table 1, paired by patient: mean 1.58, 95 % interval (0.70, 2.46), 9 degrees of freedom (R's t.test: 0.7001, 2.4599).

    Patients are the seeds here; each of the many families loses the same, so that only they vary.
    """
    first = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    second = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    sums = Sums(np.repeat((second - first)[:, None], 15, 1), np.ones((10, 15)))
    found = t_bounds(sums, 0.025)
    assert [float(sums.estimate), float(found.lower), float(found.upper)] == pytest.approx([1.58, 0.7001, 2.4599], abs=0.00005)


def test_variance_has_the_parts_that_made_it() -> None:
    """Many draws of a two-way layout: on average the parts are the variances that it was drawn with."""
    generator = np.random.default_rng(4)
    seed_sd, family_sd, rest_sd, draws = 0.3, 0.5, 1.0, 4000
    loss = (
        seed_sd * generator.normal(size=(draws, 6, 1)) + family_sd * generator.normal(size=(draws, 1, 20))
        + rest_sd * generator.normal(size=(draws, 6, 20))
    )  # fmt: skip
    sums = Sums(loss, np.ones_like(loss))
    true = seed_sd**2 / 6 + family_sd**2 / 20 + rest_sd**2 / 120
    spread = float(sums.estimate.var())
    assert abs(spread - true) < 4 * true * np.sqrt(2 / draws)
    found = variance(sums)
    assert float(found.total.mean()) > true - 4 * float(found.total.std()) / np.sqrt(draws)
    # taking the largest of three only adds; without it the sum of the parts has no bias, so the surplus is small
    assert float(found.total.mean()) < 1.1 * true


@given(loss=losses, alpha=st.sampled_from([0.025, 0.05, 0.2]))
def test_bounds_contain_the_estimate(loss: np.ndarray, alpha: float) -> None:
    sums, weights = made(loss), family_weights(8, resamples=200, seed=1)
    t = t_bounds(sums, alpha)
    assert t.lower <= sums.estimate <= t.upper
    both = widest(t, bca_bounds(sums, weights, alpha))
    assert both.lower <= sums.estimate <= both.upper
    assert np.isfinite([both.lower, both.upper]).all()


@given(loss=losses, more=st.integers(1, 8))
def test_a_loss_added_everywhere_moves_each_bound_by_as_much(loss: np.ndarray, more: int) -> None:
    """Worse evidence of the same spread: never a better bound. (Resampled in binary fractions, so that only rounding differs.)"""
    weights = family_weights(8, resamples=200, seed=1)
    for bound in (lambda sums: t_bounds(sums, 0.05), lambda sums: bca_bounds(sums, weights, 0.05)):
        before, after = bound(made(np.round(loss * 8) / 8)), bound(made(np.round(loss * 8) / 8 + more))
        assert after.upper > before.upper
        assert after.lower > before.lower


def test_no_spread_leaves_the_estimate() -> None:
    sums = made(np.full((3, 8), 0.5))
    found = widest(t_bounds(sums, 0.05), bca_bounds(sums, family_weights(8, resamples=100, seed=1), 0.05))
    assert [float(found.lower), float(found.upper)] == pytest.approx([0.05, 0.05], rel=64 * np.finfo(float).eps)


def test_cycles_pooled_are_their_seeds_side_by_side() -> None:
    generator = np.random.default_rng(5)
    parts = [made(generator.normal(size=(3, 5))) for _ in range(2)]
    assert float(pooled(parts).estimate) == pytest.approx(float(np.mean([part.estimate for part in parts])), rel=64 * np.finfo(float).eps)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_one_seed_or_family_has_no_variance(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two of each"):
        variance(made(np.ones(shape)))
