"""A tokenizer whose special tokens are spelt in characters that no text has.

It encodes as the original does, and where a text spells a special token, these are ordinary characters to it. A text's markup is
respelt to match, at the same length, so that no position moves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from contract.data.text import Span

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
"""Unicode's plane 15: characters without a meaning, which no normaliser changes."""


def free_characters(texts: Sequence[str], count: int) -> str | None:
    """Characters for private use, one beside the other, that no text has; None where the texts leave none."""
    taken = {ord(character) for character in set("".join(texts)) if ord(character) in _PRIVATE_USE}
    for first in _PRIVATE_USE[:: max(1, count)]:
        run = range(first, first + count)
        if run.stop > _PRIVATE_USE.stop:
            return None
        if taken.isdisjoint(run):
            return "".join(map(chr, run))
    return None


def respelt_text(text: str, markup: Sequence[Span], spelling: Mapping[str, str]) -> str:
    """A text with its markup respelt."""
    pieces, position = [], 0
    for start, end in markup:
        pieces += [text[position:start], spelling[text[start:end]]]
        position = end
    return "".join([*pieces, text[position:]])


def respelt_json(tokenizer: dict[str, Any], spelling: Mapping[str, str]) -> dict[str, Any]:
    """A parsed tokenizer.json with its special tokens respelt; ids stay.

    The vocabulary is respelt too: some models (Unigram, BPE with ignore_merges) would find a special token's text there.
    """
    respelt = copy.deepcopy(tokenizer)
    for token in respelt.get("added_tokens", []):
        token["content"] = spelling.get(token["content"], token["content"])
    model = respelt["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {spelling.get(token, token): index for token, index in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[spelling.get(token, token), *rest] for token, *rest in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
    return respelt
