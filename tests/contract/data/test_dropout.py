"""Dropout masks: the documented bits, and the laws that two stacks which share them can't check."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contract.data.batches import Batch, collate
from contract.data.dropout import mask
from contract.data.row import IGNORE_INDEX, Example
from parity.judge.confidence import per_comparison

CALL: dict[str, Any] = {"seed": 42, "step": 3, "layer": 2, "site": "q_proj", "width": 7, "probability": 0.1}


def drawn(*, samples: object = ((5, 6),), positions: object = ((0, 1),), **changes: Any) -> np.ndarray:
    return mask(**CALL | changes, samples=np.array(samples, np.int64), positions=np.array(positions, np.int64))


def philox_4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """As Salmon et al. 2011 write it, on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(0xD2511F53 * c[0], 2**32), divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@given(
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**31),
    sample=st.integers(-1, 2**40),
    position=st.integers(0, 2**32 - 1),
    layer=st.integers(-1, 200),
    site=st.sampled_from(["q_proj", "down_proj", "lm_head"]),
    width=st.integers(1, 11),
    probability=st.floats(0, 1, exclude_max=True),
)
def test_the_bits_are_the_documented_ones(
    seed: int, step: int, sample: int, position: int, layer: int, site: str, width: int, probability: float
) -> None:
    digest = hashlib.sha256(f"dropout {seed} {step} {layer} {site}".encode()).digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")]
    row = sample % 2**64
    words = [philox_4x32_10([row % 2**32, row // 2**32, position, c // 4], key)[c % 4] for c in range(width)]
    got = drawn(samples=[sample], positions=[position], seed=seed, step=step, layer=layer, site=site, width=width, probability=probability)
    assert got.dtype == np.bool_
    assert got.tolist() == [[word >= math.ceil(probability * 2**32) for word in words]]


def test_nothing_is_dropped_at_0_and_the_least_and_greatest_probabilities_are_kept_to() -> None:
    positions = np.arange(20_000)
    assert drawn(samples=np.zeros_like(positions), positions=positions, probability=0).all()
    assert drawn(samples=np.zeros_like(positions), positions=positions, probability=5e-324).all()
    assert not drawn(samples=np.zeros_like(positions), positions=positions, probability=1 - 2**-53).any()


def test_a_word_that_equals_the_threshold_is_kept() -> None:
    digest = hashlib.sha256(b"dropout 42 3 2 q_proj").digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")]
    for word, wanted in zip(philox_4x32_10([8, 0, 9, 0], key), range(4), strict=True):
        assert drawn(samples=[8], positions=[9], probability=word / 2**32)[0, wanted]
        assert not drawn(samples=[8], positions=[9], probability=(word + 1) / 2**32)[0, wanted]
        assert not drawn(samples=[8], positions=[9], probability=(word + 2**-8) / 2**32)[0, wanted]  # the threshold is rounded up


def batches(width: int, packed: bool) -> Batch:
    lengths = [5, 3, 9, 1, 4]
    examples = [
        Example(sample=11 * at, ids=np.arange(length, dtype=np.int32), labels=np.full(length, IGNORE_INDEX, np.int32))
        for at, length in enumerate(lengths)
    ]
    return collate([examples[:3], examples[3:]] if packed else [[example] for example in examples[::-1]], 0, width=width)


def by_token(batch: Batch) -> dict[tuple[int, int], bytes]:
    """The mask of each true token."""
    kept_BTI = mask(**CALL | {"probability": 0.4}, samples=batch.samples_BT, positions=batch.positions_BT)
    places = zip(*np.nonzero(batch.attention_BT), strict=True)
    return {(int(batch.samples_BT[at]), int(batch.positions_BT[at])): kept_BTI[at].tobytes() for at in places}


def test_packed_equals_unpacked_whatever_the_padding() -> None:
    separate, wider, packed = (by_token(batches(width, packed)) for width, packed in ((9, False), (13, False), (20, True)))
    assert separate == wider == packed
    assert len(separate) == 5 + 3 + 9 + 1 + 4
    assert len(set(separate.values())) > 10


@given(order=st.permutations(range(6)), cut=st.integers(0, 6))
def test_a_batch_permuted_or_split_has_its_masks_permuted_or_split(order: list[int], cut: int) -> None:
    samples, positions = np.arange(6)[:, None] * 2**31, np.arange(5)[None]
    whole = drawn(samples=samples, positions=positions)
    assert whole.shape == (6, 5, 7)
    np.testing.assert_array_equal(drawn(samples=samples[order], positions=positions), whole[order])
    parts = [drawn(samples=part, positions=positions) for part in (samples[:cut], samples[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_work_in_parts_is_seamless() -> None:
    """More counters than are worked on at a time, and one row wider than that."""
    samples, positions = np.arange(3)[:, None], np.arange(4000)[None]
    whole = drawn(samples=samples, positions=positions, width=9)
    for sample, position in ((0, 0), (1, 2730), (2, 3999)):
        np.testing.assert_array_equal(whole[sample, position], drawn(samples=[sample], positions=[position], width=9)[0])
    wide = drawn(samples=[1, 2], positions=[3, 4], width=40_001)
    np.testing.assert_array_equal(wide[:, :9], drawn(samples=[1, 2], positions=[3, 4], width=9))
    assert wide.shape == (2, 40_001)


OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 43}, "step": {"step": 4}, "layer": {"layer": 3}, "site": {"site": "k_proj"}, "samples": {"shift": (1, 0)},
    "high half of samples": {"shift": (2**32, 0)}, "positions": {"shift": (0, 1)},
}  # fmt: skip


def many(*, shift: tuple[int, int] = (0, 0), **changes: Any) -> np.ndarray:
    samples, positions = np.arange(40)[:, None] * 2 + shift[0], np.arange(0, 200, 2)[None] + shift[1]
    return drawn(samples=samples, positions=positions, **{"width": 33} | changes)


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_it_drops_as_often_as_it_should(probability: float) -> None:
    """Clopper-Pearson; the seeds are fixed, so a right mask either passes always or never."""
    confidence = 1 - per_comparison(8)
    kept = many(probability=probability)

    def interval(dropped: int) -> Any:
        return stats.binomtest(dropped, kept.size).proportion_ci(confidence, "exact")

    bounds = interval(int((~kept).sum()))
    assert bounds.low < math.ceil(probability * 2**32) / 2**32 < bounds.high
    if probability != 0.5:
        swapped = interval(int(kept.sum()))
        assert not swapped.low < probability < swapped.high


@pytest.mark.parametrize("other", OTHERS)
def test_masks_that_differ_in_one_thing_are_independent(other: str) -> None:
    """Chi-squared on the table of both decisions. A new mask each step is one of these."""
    one, two = many(probability=0.3), many(probability=0.3, **OTHERS[other])
    together = np.array([[(a & b).sum() for b in (two, ~two)] for a in (one, ~one)])
    assert stats.chi2_contingency(together).pvalue > per_comparison(2 * len(OTHERS))


def test_that_comparison_can_fail() -> None:
    one = many(probability=0.3)
    two = one ^ (many(probability=0.9, site="x"))  # nine decisions of ten are the same
    together = np.array([[(a & b).sum() for b in (two, ~two)] for a in (one, ~one)])
    assert stats.chi2_contingency(together).pvalue < per_comparison(2 * len(OTHERS))


def test_channels_of_a_token_are_independent() -> None:
    kept = many(probability=0.3).reshape(-1, 33).astype(np.int64)
    drops = 33 - kept.sum(axis=1)
    seen = np.bincount(drops, minlength=34)
    expected = stats.binom.pmf(np.arange(34), 33, 0.3) * len(drops)
    usual = expected > 5
    seen, expected = np.append(seen[usual], seen[~usual].sum()), np.append(expected[usual], expected[~usual].sum())
    assert stats.chisquare(seen, expected).pvalue > per_comparison(1)


def test_a_scaled_mask_keeps_the_mean() -> None:
    """What a stack scales by is 1 / (1 - p), not 1 / p and not 1: at p = 0.1 the other two are far outside."""
    kept = many(probability=0.1)
    spread = stats.norm.isf(per_comparison(2)) * math.sqrt(0.1 * 0.9 / kept.size) / 0.9
    assert abs(kept.mean() / 0.9 - 1) < spread
    assert abs(kept.mean() / 0.1 - 1) > spread
    assert abs(kept.mean() - 1) > spread
