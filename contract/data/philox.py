"""Philox4x32-10: random words by number, in any order, without a state.

Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (section 4.3). A word depends on key and counter alone,
so that a row's place in an epoch and a token's dropout do not depend on what was drawn before, on batching or on the machine.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

Key = tuple[int, int]
"""Two words of 32 bits."""

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW, _HALF = np.uint64(2**32 - 1), np.uint64(32)
_BLOCK = 2**13
"""Counters that are worked on at a time: the three arrays of two 64-bit words each stay in a core's second-level cache."""


def key_of(*parts: object) -> Key:
    """A key for a purpose: the first 64 bits, little-endian, of SHA-256 of the parts, written with a space between them.

    No part may contain a space, or two purposes could read alike.
    """
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def words(counter: np.ndarray, key: Key) -> np.ndarray:
    """The four words of each counter.

    Args:
        counter: uint32 [..., 4].

    Returns:
        uint32 [..., 4].
    """
    flat = counter.reshape(-1, 4)
    out = np.empty(flat.shape, np.uint32)
    for start in range(0, len(flat), _BLOCK):
        part = flat[start : start + _BLOCK].T.astype(np.uint64)
        even, odd = rounds(np.ascontiguousarray(part[0::2]), np.ascontiguousarray(part[1::2]), key)
        out[start : start + _BLOCK, 0::2], out[start : start + _BLOCK, 1::2] = even.T, odd.T
    return out.reshape(counter.shape)


def rounds(even: np.ndarray, odd: np.ndarray, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """The words of counters, with words 0 and 2 in one array and 1 and 3 in another.

    Args:
        even, odd: uint64 [2, n], values of 32 bits; overwritten.

    Returns:
        words 0 and 2, words 1 and 3, likewise.
    """
    high = np.empty_like(even)
    for round_key in _round_keys(key):
        np.multiply(even, _MULTIPLIERS, out=even)
        np.right_shift(even, _HALF, out=high)
        np.bitwise_and(even, _LOW, out=even)
        # The paper's new words: high 2 ^ word 1 ^ key 0, low 2, high 0 ^ word 3 ^ key 1, low 0.
        np.bitwise_xor(odd, high[::-1], out=odd)
        np.bitwise_xor(odd, round_key, out=odd)
        even, odd = odd, even[::-1]
    return even, odd


@lru_cache(maxsize=64)
def _round_keys(key: Key) -> np.ndarray:
    """uint64 [rounds, 2, 1]."""
    keys = [[[(word + number * weyl) % 2**32] for word, weyl in zip(key, _WEYL, strict=True)] for number in range(_ROUNDS)]
    return np.array(keys, np.uint64)
