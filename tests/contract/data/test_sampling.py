"""The random numbers of sampling: the documented bits, and that they are uniform and independent of what else is drawn."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contract.data.sampling import uniform
from parity.judge.confidence import per_comparison
from tests.contract.data.test_dropout import philox_4x32_10


def drawn(seed: int, sequence: int, position: int) -> float:
    return float(uniform(seed=seed, sequences=np.array(sequence, np.int64), positions=np.array(position, np.int64)))


@given(seed=st.integers(0, 2**63 - 1), sequence=st.integers(0, 2**63 - 1), position=st.integers(0, 2**32 - 1))
def test_the_documented_bits(seed: int, sequence: int, position: int) -> None:
    digest = hashlib.sha256(f"sampling {seed}".encode()).digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")]
    words = philox_4x32_10([sequence % 2**32, sequence // 2**32, position, 0], key)
    u = drawn(seed, sequence, position)
    assert Fraction(u) == Fraction(words[0] * 2**21 + words[1] // 2**11, 2**53)
    assert 0 <= u < 1


def test_a_draw_does_not_depend_on_what_is_drawn_beside_it() -> None:
    sequences, positions = np.arange(5)[:, None], np.arange(30)
    many = uniform(seed=9, sequences=sequences, positions=positions)
    assert many.shape == (5, 30)
    assert len(np.unique(many)) == many.size
    assert all(many[sequence, position] == drawn(9, sequence, position) for sequence in range(5) for position in range(30))
    assert drawn(9, 2, 3) != drawn(10, 2, 3)


def test_they_are_uniform() -> None:
    """Kolmogorov and Smirnov's test at the confidence of a single comparison; the draws are fixed, so that it's the same each time."""
    many = uniform(seed=1, sequences=np.arange(100)[:, None], positions=np.arange(200)).ravel()
    assert stats.kstest(many, "uniform").pvalue > per_comparison(2)
    assert stats.kstest(many**1.05, "uniform").pvalue < per_comparison(2)  # what it can see
