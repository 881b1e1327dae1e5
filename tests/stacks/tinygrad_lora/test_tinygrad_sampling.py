"""How a token is chosen: the rule of contract/data/sampling.py, written once more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data.sampling import uniform
from contract.worker.generation import Sampling
from stacks.tinygrad_lora import sampling as sampling_module
from stacks.tinygrad_lora.sampling import choose

GREEDY = Sampling()


def by_hand(logits: Sequence[float], sampling: Sampling, u: float) -> int:
    """The rule, one number after the other."""
    top = max(logits)
    e = [math.exp((z - top) / sampling.temperature) for z in logits]
    order = sorted(range(len(e)), key=lambda token: (-e[token], token))
    total, sums = 0.0, []
    for token in order:
        total += e[token]
        sums.append(total)
    kept = next(k for k, c in enumerate(sums) if c >= sampling.top_p * total)
    return order[next(k for k, c in enumerate(sums) if c > u * sums[kept])]


@given(
    logits=st.lists(st.sampled_from([-9.0, -1.5, -1.0, 0.0, 0.25, 2.0, 2.5]), min_size=1, max_size=12),
    temperature=st.sampled_from([0.25, 1.0, 3.0]), top_p=st.sampled_from([1e-9, 0.3, 0.75, 1.0]), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_a_token_is_drawn_by_the_rule(logits: list[float], temperature: float, top_p: float, seed: int) -> None:
    """Many equal logits: of those the lower id stands first. Each row has numbers of its own."""
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    rows = {"sequences": [3, 4], "positions": [8, 8]}
    u = uniform(seed=seed, sequences=np.array(rows["sequences"]), positions=np.array(rows["positions"]))
    got = choose(np.array([logits, logits]), sampling, **rows)
    assert got == [by_hand(logits, sampling, float(one)) for one in u]
    if top_p == 1e-9:
        assert got == choose(np.array([logits, logits]), GREEDY, **rows)


def test_a_number_on_the_border_draws_the_token_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "uniform", lambda **_: np.array([0.5]))
    assert choose(np.zeros((1, 4)), Sampling(temperature=1.0), sequences=[0], positions=[0]) == [2]


def test_tokens_that_reach_top_p_exactly_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "uniform", lambda **_: np.array([0.75]))
    assert choose(np.zeros((1, 4)), Sampling(temperature=1.0, top_p=0.5), sequences=[0], positions=[0]) == [1]


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_as_temperature_falls_to_zero_drawing_becomes_greedy(temperature: float) -> None:
    logits = np.array([[1.0, 4.0, 3.9999, -800.0]])
    assert choose(logits, Sampling(temperature=temperature), sequences=[0], positions=[0]) == [1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_of_equal_logits_greedy_takes_the_lowest_id(dtype: type) -> None:
    logits = np.array([[1.0, 4.0, 4.0], [0.0, 0.0, 0.0]]).astype(dtype)
    assert choose(logits, GREEDY, sequences=[0, 1], positions=[0, 0]) == [1, 0]


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(spoilt: float) -> None:
    logits = np.zeros((3, 5))
    logits[1, 2] = spoilt
    with pytest.raises(ValueError, match="the logits for position 6 of sequence 4 hold NaN or infinity; allowed: finite ones; look into"):
        choose(logits, GREEDY, sequences=[3, 4, 5], positions=[9, 6, 9])
