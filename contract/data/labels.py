"""Texts as examples: ids and labels.

labels[t] = ids[t] where token t is to be predicted, IGNORE_INDEX elsewhere; not shifted. Nothing predicts token 0, so labels[0] is always
IGNORE_INDEX: the labels that are not are exactly the terms of the loss. Nothing is padded here, and no mask is ever made by comparing
ids, so a token may have the id of a pad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from contract.data.row import IGNORE_INDEX, Example
from contract.data.text import Rendered
from contract.data.tokenizers import Encoded, Tokenizer

Truncation = Literal["left", "right"]
"""left: keeps a row's end, so its last answer. right: keeps its beginning (TRL's keep_start)."""

Reason = Literal["no token to learn", "truncated away"]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that became no example. sample, line: as of Example and Row."""

    sample: int
    line: int
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a batch of rows became, in their order. truncated: how many rows lost tokens, skipped ones among them."""

    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...]
    truncated: int


def supervised(
    tokenizer: Tokenizer, rows: Sequence[Rendered], *, samples: Sequence[int], seq_len: int, truncation: Truncation = "left"
) -> Labelled:
    """Rows whose supervised characters are learnt: the objective chatml_supervised.

    A token that holds a supervised character is learnt, even where it holds others too. The end of sequence is appended, and learnt,
    unless the text ends with it or the template ended the turn itself. A row that is longer than seq_len loses tokens on one side, and
    their labels with them; a beginning that is kept gets no end of sequence in place of what is lost.

    Args:
        samples: the rows' numbers, for Example.sample.
        seq_len: tokens of an example at most, the end of sequence included.

    Raises:
        ContractError: a text that the tokenizer can't encode.
    """
    whole = [_supervised(tokenizer, row, encoded) for row, encoded in zip(rows, tokenizer.encode_batch(rows), strict=True)]
    return _labelled(whole, rows, samples, seq_len, truncation)


def last_k(tokenizer: Tokenizer, rows: Sequence[Rendered], *, samples: Sequence[int], seq_len: int, k: int) -> Labelled:
    """Rows whose last k tokens are learnt, whoever said them: the objective last_k. No end of sequence is appended.

    A row of n tokens has n - 1 that can be predicted, so min(k, n - 1) are learnt. One that is longer than seq_len keeps its end.

    Raises:
        ValueError: k < 1.
        ContractError: a text that the tokenizer can't encode.
    """
    if k < 1:
        raise ValueError(f"got k = {k}; allowed: 1 or more")
    whole = []
    for encoded in tokenizer.encode_batch(rows):
        labels = encoded.ids.copy()
        labels[:-k] = IGNORE_INDEX
        whole.append((encoded.ids, labels))
    return _labelled(whole, rows, samples, seq_len, "left")


def _supervised(tokenizer: Tokenizer, row: Rendered, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    ids = encoded.ids
    closes = not row.ended and not (len(ids) and ids[-1] == tokenizer.eos_id)
    if closes:
        ids = np.append(ids, np.int32(tokenizer.eos_id))
    labels = np.full_like(ids, IGNORE_INDEX)
    for span in row.supervised:
        first, end = encoded.tokens_of(span)
        labels[first:end] = ids[first:end]
    if closes:
        labels[-1] = tokenizer.eos_id
    return ids, labels


def _labelled(
    whole: Sequence[tuple[np.ndarray, np.ndarray]], rows: Sequence[Rendered], samples: Sequence[int], seq_len: int, truncation: Truncation
) -> Labelled:
    """Truncates, and leaves out what has nothing to learn. The labels are the caller's no more."""
    if seq_len < 1:
        raise ValueError(f"got seq_len = {seq_len}; allowed: 1 or more")
    kept = slice(-seq_len, None) if truncation == "left" else slice(seq_len)
    examples, skipped, truncated = [], [], 0
    for row, sample, (ids, labels) in zip(rows, samples, whole, strict=True):
        truncated += len(ids) > seq_len
        learnt = labels[kept]
        if len(learnt) < 2 or (learnt[1:] == IGNORE_INDEX).all():
            reason: Reason = "truncated away" if (labels[1:] != IGNORE_INDEX).any() else "no token to learn"
            skipped.append(Skipped(sample=sample, line=row.line, reason=reason))
            continue
        learnt[0] = IGNORE_INDEX
        examples.append(Example(sample=sample, ids=ids[kept], labels=learnt))
    return Labelled(examples=tuple(examples), skipped=tuple(skipped), truncated=truncated)
