"""Dropout masks: the same in every stack, and under any batching, packing or split over devices.

A decision belongs to a run's seed, an optimiser step, a row of the train file, a token's position in that row, a layer, a linear and
an input channel of it, and to nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from contract.data import philox

_WORDS = 4
_COUNTERS = 2**13
"""Counters that are worked on at a time (contract.data.philox has the reason)."""


def mask(
    *, seed: int, step: int, samples: np.ndarray, positions: np.ndarray, layer: int, site: str, width: int, probability: float
) -> np.ndarray:
    """Which inputs of one linear's A are kept; what they are scaled by, 1 / (1 - probability), is the stack's computation.

        keep[..., c] = word[c % 4] >= ceil(probability * 2^32)

    `word` are the four words of Philox4x32-10 for the counter (sample mod 2^32, sample div 2^32, position, c div 4) and the key
    contract.data.philox.key_of("dropout", seed, step, layer, site). A decision takes 32 bits: it drops with the probability
    ceil(probability * 2^32) / 2^32, which is off by less than 2^-32, and exact at 0.

    Args:
        step: optimiser step, from 0, so that no two steps share a mask.
        samples: integers [...], Example.sample of each token's row; -1 (padding) is a row like any other.
        positions: integers [...], 0 to 2^32 - 1: a token's place in its own row, which packing and padding do not change.
        layer: the block, from 0; -1 for a linear outside the blocks.
        site: the linear's name in the block, such as q_proj.
        width: input channels of the linear.
        probability: of being dropped, in [0, 1).

    Returns:
        bool [..., width], True where an input is kept; [...] is the common shape of samples and positions.
    """
    assert 0 <= probability < 1
    assert not positions.size or 0 <= positions.min() <= positions.max() < 2**32
    sample_N, position_N = (part.ravel() for part in np.broadcast_arrays(samples.astype(np.int64), positions))
    key = philox.key_of("dropout", seed, step, layer, site)
    threshold = np.uint64(math.ceil(probability * 2**32))
    blocks = -(-width // _WORDS)
    kept = np.empty((len(sample_N), blocks, _WORDS), np.bool_)
    tokens = max(1, _COUNTERS // blocks)
    for start in range(0, len(kept), tokens):
        part = slice(start, start + tokens)
        for first, pair in enumerate(philox.rounds(*_counters(sample_N[part], position_N[part], blocks), key)):
            for word in range(2):
                np.greater_equal(pair[word].reshape(-1, blocks), threshold, out=kept[part, :, first + 2 * word])
    shape = np.broadcast_shapes(samples.shape, positions.shape)
    return kept.reshape(len(kept), blocks * _WORDS)[:, :width].reshape(*shape, width)


def _counters(sample_N: np.ndarray, position_N: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Words 0 and 2 of the counters, and words 1 and 3; uint64 [2, N * blocks] each."""
    even, odd = (np.empty((2, len(sample_N), blocks), np.uint64) for _ in range(2))
    even[0], odd[0] = (sample_N & (2**32 - 1))[:, None], ((sample_N >> 32) & (2**32 - 1))[:, None]
    even[1], odd[1] = position_N[:, None], np.arange(blocks)
    return even.reshape(2, -1), odd.reshape(2, -1)
