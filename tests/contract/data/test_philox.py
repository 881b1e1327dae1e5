"""Philox4x32-10 against the known answers of its authors, and what a word depends on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data import philox

# Random123's tests/kat_vectors (github.com/DEShawResearch/random123, by Philox's authors), the lines "philox4x32 10": counter, key, words.
KNOWN_ANSWERS = (
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
)

WORD = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_known_answers(line: str) -> None:
    numbers = [int(word, 16) for word in line.split()]
    got = philox.words(np.array(numbers[:4], np.uint32), (numbers[4], numbers[5]))
    assert got.dtype == np.uint32
    assert got.tolist() == numbers[6:]


@given(counters=st.lists(st.tuples(WORD, WORD, WORD, WORD), max_size=5), key=st.tuples(WORD, WORD), at=st.integers(0, 20_000))
def test_a_word_does_not_depend_on_its_neighbours(counters: list[tuple[int, ...]], key: philox.Key, at: int) -> None:
    """Alone, among others, and on either side of the blocks that are worked on at a time."""
    alone = [philox.words(np.array(counter, np.uint32), key).tolist() for counter in counters]
    together = np.zeros((20_010, 4), np.uint32)
    together[at : at + len(counters)] = np.array(counters, np.uint32).reshape(-1, 4)
    before = together.copy()
    assert philox.words(together, key)[at : at + len(counters)].tolist() == alone
    assert philox.words(together.reshape(10, 2001, 4), key).shape == (10, 2001, 4)
    np.testing.assert_array_equal(together, before)


def test_a_key_follows_from_the_purpose_alone() -> None:
    """SHA-256("order 42 0") as GNU coreutils' sha256sum 9.1 gives it begins with the bytes here."""
    assert philox.key_of("order", 42, 0) == (
        int.from_bytes(bytes.fromhex("fb5fdb01"), "little"),
        int.from_bytes(bytes.fromhex("235fda20"), "little"),
    )
    keys = [philox.key_of(*parts) for parts in (("order", 1, 12), ("order", 11, 2), ("order", 112), ("dropout", 1, 12), ("order", 12, 1))]
    assert len(set(keys)) == len(keys)
