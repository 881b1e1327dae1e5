"""The shared policy's formulas: their authors' known answers, and what else computes the same."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from parity import goldens
from parity.checks import policy_numbers
from parity.reference import policy

# Random123's tests/kat_vectors (github.com/DEShawResearch/random123, by Philox's authors), the lines "philox4x32 10": counter, key, words.
KNOWN_ANSWERS = (
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
)


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_philox_4x32_gives_the_known_answers(line: str) -> None:
    numbers = [int(word, 16) for word in line.split()]
    assert policy.philox_4x32(numbers[:4], numbers[4:6]) == numbers[6:]


def test_philox_4x64_is_numpys() -> None:
    key = (0x123456789ABCDEF0, 0xFEDCBA9876543210)
    words = np.random.Philox(counter=0, key=key[0] | key[1] << 64).random_raw(8).tolist()
    assert [*policy.philox_4x64((1, 0, 0, 0), key), *policy.philox_4x64((2, 0, 0, 0), key)] == words


def test_the_adapter_is_that_of_random123() -> None:
    """The first case of tests/contract/model/test_adapter_init.py, which says how it was made."""
    golden = """
        -0x1.3970b4p-3 0x1.184db8p-3 -0x1.771186p-4 -0x1.331d42p-2 0x1.5788c6p-4 0x1.314274p-2
        -0x1.428fe4p-3 -0x1.7ef9fp-3 0x1.06682cp-3 0x1.259bep-2 0x1.e6f4cep-3 -0x1.3fd686p-3"""
    wanted = np.array([float.fromhex(value) for value in golden.split()], np.float32).reshape(2, 6)
    np.testing.assert_array_equal(policy.lora_a("layers.1.k_proj.lora_a", (2, 6), 7), wanted)


def test_the_rates_are_transformers_within_their_own_rounding() -> None:
    for case in json.loads((Path(goldens.__file__).with_name("schedule.json")).read_text())["cases"]:
        rates, limit = policy.learning_rates(case["base"], case["warmup"], case["total"])
        for step, rate in case["rates"].items():
            assert abs(rates[int(step)] - rate) <= limit[int(step)]
    shifted, limit = policy.learning_rates(1.0, 3, 1001)
    assert (np.abs(np.diff(shifted)) > limit[1:]).all()  # a step more or less is outside


def test_peft_draws_what_the_paper_says() -> None:
    scaled = np.array(policy_numbers.golden("adapter")["scaled"])
    assert policy_numbers._from_uniform(scaled) <= policy.dvoretzky_kiefer_wolfowitz(scaled.size, 1e-6)
    assert policy_numbers._from_uniform(scaled) == pytest.approx(stats.kstest(scaled, "uniform", args=(-1, 2)).statistic, rel=1e-9)


def test_bounds_hold_and_are_not_idle() -> None:
    """Against exact tails: of a binomial share, of Kolmogorov's statistic, and of Poisson's, which fixed points stay under."""
    for count, alarm in ((500, 1e-6), (20_000, 1e-9)):
        t = policy.hoeffding(count, alarm)
        assert 2 * stats.binom.sf(math.ceil(count * (0.5 + t)) - 1, count, 0.5) <= alarm
        assert 1e-3 * alarm < stats.kstwo.sf(t, count) <= alarm
    for permutations, alarm in ((1, 1e-6), (48, 1e-9)):
        most = policy.most_matches(permutations, alarm)
        assert (
            stats.poisson.sf(most - 1, permutations) <= alarm < stats.poisson.sf(permutations + 2 * math.isqrt(permutations), permutations)
        )


def test_first_fit_keeps_order_and_room() -> None:
    rng = np.random.default_rng(3)
    lengths = {row: int(length) for row, length in enumerate(rng.integers(1, 11, 90))}
    groups = policy.first_fit(list(lengths), lengths, 10, 8)
    assert sorted(row for group in groups for row in group) == list(lengths)
    assert all(sum(lengths[row] for row in group) <= 10 and all(a < b for a, b in pairwise(group)) for group in groups)
    assert policy.first_fit([0, 1, 2, 3], {0: 6, 1: 5, 2: 4, 3: 5}, 10, 2) == [(0, 2), (1, 3)]
    assert policy.first_fit([0, 1, 2, 3], {0: 6, 1: 7, 2: 8, 3: 4}, 10, 2) == [(0,), (1,), (2,), (3,)]
