"""Attention's reference against its formula to 300 bits, one query and one key at a time."""

from __future__ import annotations

from collections.abc import Mapping

import mpmath
import numpy as np
import pytest

from parity.reference.attention import attention, visible
from parity.reference.running_error import REFERENCE
from tests.parity.reference import high_precision

HEADS, KEY_HEADS, LENGTH, HEAD_DIM = 4, 2, 4, 2
PADDING = {
    "none": None,
    "left": np.array([[False, False, True, True]]),
    "right": np.array([[True, True, True, False]]),
    "holes": np.array([[True, True, False, True]]),
}


def drawn(seed: int = 4, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    query, key = (batch, HEADS, LENGTH, HEAD_DIM), (batch, KEY_HEADS, LENGTH, HEAD_DIM)
    sizes = {"q": query, "k": key, "v": key, "context_bar": query}
    return {name: rng.standard_normal(size) for name, size in sizes.items()}


def plain(tensors: Mapping[str, np.ndarray], window: int | None) -> np.ndarray:
    context = np.full(tensors["q"].shape, mpmath.mpf(0), dtype=object)
    valid = tensors.get("valid")
    for b, h, t in np.ndindex(context.shape[:3]):
        group = h // (HEADS // KEY_HEADS)
        seen = [s for s in range(t + 1) if (window is None or t - s < window) and (valid is None or valid[b, s])]
        if not seen:
            continue
        scores = [np.sum(tensors["q"][b, h, t] * tensors["k"][b, group, s]) / mpmath.sqrt(HEAD_DIM) for s in seen]
        weights = [mpmath.exp(score) for score in scores]
        for weight, s in zip(weights, seen, strict=True):
            context[b, h, t] = context[b, h, t] + weight / sum(weights) * tensors["v"][b, group, s]
    return context


@pytest.mark.parametrize(("window", "padding"), [(None, "none"), (None, "holes"), (3, "none"), (2, "left"), (2, "right")])
def test_values_and_gradients(window: int | None, padding: str) -> None:
    valid = PADDING[padding]
    tensors = {**drawn(), **({} if valid is None else {"valid": valid})}
    exact = high_precision.exactly(lambda inputs: plain(inputs, window), tensors, "context", ("q", "k", "v"))
    high_precision.assert_within_its_own_error(attention, tensors, {"window": window}, exact)


def test_a_wholly_masked_sequence_is_exactly_zero_and_another_is_not_touched() -> None:
    tensors = drawn(batch=2)
    valid = np.array([[False] * LENGTH, [True] * LENGTH])
    got = attention({**tensors, "valid": valid}, {"window": None}, REFERENCE)
    alone = attention({name: array[1:] for name, array in tensors.items()}, {"window": None}, REFERENCE)
    assert set(got) == {"context", "q_grad", "k_grad", "v_grad"}
    for name, one in got.items():
        assert not one.value[0].any()
        assert not one.error[0].any()
        np.testing.assert_array_equal(one.value[1:], alone[name].value)


def test_what_a_token_sees_is_counted_by_hand() -> None:
    seen = visible(4, 2, np.array([[True, True, False, True]]))
    np.testing.assert_array_equal(seen[0, 0, 0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(visible(3, None, None)[0, 0, 0], np.tri(3, dtype=bool))
    np.testing.assert_array_equal(visible(3, 3, None), visible(3, None, None))
