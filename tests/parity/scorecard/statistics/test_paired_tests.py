"""Pairs of yes and no: published examples, other libraries, laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests

from parity.scorecard.statistics.pairs import discordant, flip_rate, holm, loss_by_family, mcnemar, mcnemar_against

counts = st.integers(0, 60)


@pytest.mark.parametrize(("lost", "won", "published"), [(1, 7, 0.0703), (6, 16, 0.0525)])
def test_mcnemar_published(lost: int, won: int, published: float) -> None:
    """Fagerland, Lydersen & Laake 2013 (BMC Med Res Methodol 13:91): the exact conditional test on both of their examples."""
    assert mcnemar(lost, won) == pytest.approx(published, abs=0.00005)


@given(lost=counts, won=counts)
def test_mcnemar_is_statsmodels(lost: int, won: int) -> None:
    theirs = their_mcnemar([[0, lost], [won, 0]], exact=True).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(min(theirs, 1.0), rel=1e4 * np.finfo(float).eps)
    against = stats.binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
    assert mcnemar_against(lost, won) == pytest.approx(against, rel=1e4 * np.finfo(float).eps)


@given(lost=counts, won=counts.filter(lambda won: won > 0))
def test_mcnemar_grows_surer_as_wins_become_losses(lost: int, won: int) -> None:
    assert mcnemar_against(lost + 1, won - 1) <= mcnemar_against(lost + 1, won) <= mcnemar_against(lost, won)


def test_holm_worked_by_hand() -> None:
    """Four p-values: 4 x 0.005, 3 x 0.01, 2 x 0.03, and the last held at the third's (Holm 1979, the step-down rule)."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], rtol=4 * np.finfo(float).eps)


def test_holm_is_statsmodels() -> None:
    """Ties and 0 and 1 among them. One call alone: theirs collects garbage first, which takes a while."""
    p = np.round(np.random.default_rng(6).random(60) ** 3, 2)
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=8 * np.finfo(float).eps)


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=30), factor=st.floats(0, 1))
def test_holm_adjusts_upwards_and_keeps_the_order(p: list[float], factor: float) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert (holm(np.array(p) * factor) <= adjusted).all()


def test_flips() -> None:
    baseline = np.array([[True, True, False, False, True]])
    candidate = np.array([[True, False, True, True, False]])
    complete = np.array([[True, True, True, True, False]])
    assert flip_rate(baseline, candidate, complete) == 0.75
    assert discordant(baseline & complete, candidate & complete) == (1, 2)
    assert np.isnan(flip_rate(baseline, candidate, np.zeros_like(complete)))


def test_families_are_one_sample_t_tests() -> None:
    generator = np.random.default_rng(1)
    family = np.arange(40) % 2
    loss = generator.integers(-1, 2, (3, 40)).astype(float)
    complete = generator.random((3, 40)) < 0.9
    means, p = loss_by_family(loss, complete, family, 2)
    for number in range(2):
        tasks = [loss[complete[:, t], t].mean() for t in range(40) if family[t] == number and complete[:, t].any()]
        theirs = stats.ttest_1samp(tasks, 0.0, alternative="greater")
        assert means[number] == pytest.approx(np.mean(tasks), rel=64 * np.finfo(float).eps, abs=64 * np.finfo(float).eps)
        assert p[number] == pytest.approx(theirs.pvalue, rel=1e4 * np.finfo(float).eps)


def test_families_without_spread() -> None:
    """All tasks lost: certain. None lost: no sign of it. A single task says nothing."""
    loss = np.array([[1.0, 1.0, 0.0, 0.0, 1.0]])
    means, p = loss_by_family(loss, np.ones_like(loss, dtype=bool), np.array([0, 0, 1, 1, 2]), 3)
    assert p.tolist() == [0.0, 1.0, 1.0]
    assert means[:2].tolist() == [1.0, 0.0]
