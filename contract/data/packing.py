"""Several rows in one sequence: first fit, in order, within a bounded window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

WINDOW = 64
"""Sequences that are open at once. More of them leave less room unused and move rows further from their place in the order."""

Item = TypeVar("Item")


def packed(items: Iterable[Item], length: Callable[[Item], int], seq_len: int, *, window: int = WINDOW) -> Iterator[tuple[Item, ...]]:
    """Groups of items whose lengths sum to at most `seq_len`, in memory bounded by the window.

    Each item goes to the oldest open group that has room for it. Where none has, a new group is opened, and where `window` are open
    already, the oldest one is given out first. No item is split: what is left of it would lack its beginning. The groups are a
    function of the items' order and lengths alone, and the items of a group are in order.

    Raises:
        ValueError: an item is longer than seq_len.
    """
    open_groups: list[tuple[list[Item], int]] = []
    for item in items:
        size = length(item)
        if size > seq_len:
            raise ValueError(f"a row has {size} tokens, a sequence {seq_len}; truncate rows to seq_len before they are packed")
        for at, (group, room) in enumerate(open_groups):
            if size <= room:
                group.append(item)
                open_groups[at] = group, room - size
                break
        else:
            if len(open_groups) == window:
                yield tuple(open_groups.pop(0)[0])
            open_groups.append(([item], seq_len - size))
    for group, _ in open_groups:
        yield tuple(group)
