"""First fit in a bounded window."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data.packing import WINDOW, packed


def pack(lengths: list[int], seq_len: int, window: int = WINDOW) -> list[list[int]]:
    """Groups of item numbers."""
    return [[at for at, _ in group] for group in packed(enumerate(lengths), lambda item: item[1], seq_len, window=window)]


@given(lengths=st.lists(st.integers(1, 30), max_size=80), seq_len=st.integers(30, 64), window=st.integers(1, 9))
def test_every_item_once_in_groups_that_fit(lengths: list[int], seq_len: int, window: int) -> None:
    groups = pack(lengths, seq_len, window)
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    assert all(sum(lengths[at] for at in group) <= seq_len for group in groups)
    assert all(group and group == sorted(group) for group in groups)
    # A group is opened only where the one before it, which is open then, has no room for the item that opens it.
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    for before, after in pairwise(groups):
        assert sum(lengths[at] for at in before if at < after[0]) + lengths[after[0]] > seq_len
    assert pack(lengths, seq_len, window) == groups


@pytest.mark.parametrize(
    ("lengths", "window", "groups"),
    [
        ([], 4, []),
        ([10], 4, [[0]]),
        ([4, 7, 5, 3, 1], 4, [[0, 2, 4], [1, 3]]),
        ([4, 7, 5, 3, 1], 1, [[0], [1], [2, 3, 4]]),
        ([10, 10, 1], 4, [[0], [1], [2]]),
        ([6, 6, 6, 4, 4, 4], 2, [[0], [1, 3], [2, 4], [5]]),
    ],
)
def test_examples(lengths: list[int], window: int, groups: list[list[int]]) -> None:
    assert pack(lengths, 10, window) == groups


def test_an_item_that_is_too_long_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match="a row has 11 tokens, a sequence 10"):
        pack([3, 11], 10)


def test_it_looks_no_further_ahead_than_its_window() -> None:
    taken = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(6)
            yield 6

    groups = packed(endless(), lambda length: length, 10, window=3)
    for count in range(1, 9):
        assert next(groups) == (6,)
        assert len(taken) == count + 3
