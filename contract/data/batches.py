"""Examples as rectangles of token ids: what one forward pass takes.

Legend of dimensions: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.data.row import IGNORE_INDEX, Example

PADDING = -1
"""The segment and the sample of a position that holds padding."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch, padded on the right. A sequence holds one example, or several segments that do not see each other.

    Attributes:
        ids_BT: int64 token ids, the pad id where there is no token.
        labels_BT: int64, not shifted: the logits of t - 1 are held against labels[t]. IGNORE_INDEX on padding, on what is not to be
            learned, and on the first token of every segment, whose predecessor belongs to another row or to none.
        lengths_B: int64, tokens of each sequence. What is padding follows from these, never from ids: the pad id may be a true token.
        positions_BT: int64, a token's place in its own segment, 0 on padding.
        segments_BT: int64, the number of a token's segment in its sequence, PADDING on padding.
        samples_BT: int64, Example.sample of each token, PADDING on padding; dropout masks take these and positions_BT.
    """

    ids_BT: np.ndarray
    labels_BT: np.ndarray
    lengths_B: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    samples_BT: np.ndarray

    @property
    def attention_BT(self) -> np.ndarray:
        """bool: True on tokens, False on padding."""
        attention_BT: np.ndarray = self.segments_BT != PADDING
        return attention_BT

    @property
    def tokens(self) -> int:
        """Supervised tokens: the terms of this batch's loss."""
        return int((self.labels_BT[:, 1:] != IGNORE_INDEX).sum())

    @property
    def samples(self) -> tuple[tuple[int, ...], ...]:
        """The samples of each sequence, segment by segment."""
        starts_BT = (self.positions_BT == 0) & self.attention_BT
        return tuple(tuple(row[starts].tolist()) for row, starts in zip(self.samples_BT, starts_BT, strict=True))


def supervised(example: Example) -> int:
    """Tokens of an example that carry loss: its first one has no predecessor that could predict it."""
    return int((example.labels[1:] != IGNORE_INDEX).sum())


def collate(sequences: Sequence[Sequence[Example]], pad_id: int, *, width: int | None = None) -> Batch:
    """A batch of sequences, each of one example or several.

    Args:
        pad_id: fills what is left over; a true id, since it is looked up like any other.
        width: T; else the longest sequence's length.

    Raises:
        ValueError: a sequence is longer than width.
    """
    assert sequences
    assert all(len(example.ids) for sequence in sequences for example in sequence)
    lengths_B = np.array([sum(len(example.ids) for example in sequence) for sequence in sequences], np.int64)
    width = int(lengths_B.max()) if width is None else width
    if lengths_B.max() > width:
        raise ValueError(f"a sequence has {lengths_B.max()} tokens, the batch {width}; truncate rows to seq_len before")
    shape = len(sequences), width
    batch = Batch(
        ids_BT=np.full(shape, pad_id, np.int64),
        labels_BT=np.full(shape, IGNORE_INDEX, np.int64),
        lengths_B=lengths_B,
        positions_BT=np.zeros(shape, np.int64),
        segments_BT=np.full(shape, PADDING, np.int64),
        samples_BT=np.full(shape, PADDING, np.int64),
    )
    for row, sequence in enumerate(sequences):
        start = 0
        for segment, example in enumerate(sequence):
            part = row, slice(start, start + len(example.ids))
            batch.ids_BT[part] = example.ids
            batch.labels_BT[part] = example.labels
            batch.labels_BT[row, start] = IGNORE_INDEX
            batch.positions_BT[part] = np.arange(len(example.ids))
            batch.segments_BT[part] = segment
            batch.samples_BT[part] = example.sample
            start += len(example.ids)
    return batch
