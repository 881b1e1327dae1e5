"""Special tokens: markup where the template wrote them, ordinary text where a row did."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from contract.data.text import Rendered, Span


@dataclass(frozen=True, slots=True)
class Markup:
    """spans: where a text's special tokens lie that are markup. whole: a tokenizer that reads the text whole finds exactly those."""

    spans: tuple[Span, ...]
    whole: bool


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """What finds special tokens: the leftmost, and of those the longest, as the tokenizers library does."""
    longest_first = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else "(?!)")


def markup(row: Rendered, special: re.Pattern[str]) -> Markup:
    """The special tokens that lie wholly in text that the template wrote.

    One that holds a character of the row's own text is no markup, be it only half of it.
    """
    found = tuple(match.span() for match in special.finditer(row.text))
    if not row.data or not _meet(found, row.data):
        return Markup(found, whole=True)
    spans: list[Span] = []
    position = 0
    for start, end in (*row.data, (len(row.text), len(row.text))):
        # Each stretch by itself: a match that begins in one and ends in a row's text must not hide one that lies in it.
        spans += (match.span() for match in special.finditer(row.text, position, start))
        position = end
    return Markup(tuple(spans), whole=False)


def _meet(first: tuple[Span, ...], second: tuple[Span, ...]) -> bool:
    """Whether any two spans of two ascending lists share a character."""
    index = 0
    for start, end in first:
        while index < len(second) and second[index][1] <= start:
            index += 1
        if index < len(second) and second[index][0] < end:
            return True
    return False
