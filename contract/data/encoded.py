"""What the tokenizers library made of a text: its ids, and which tokens hold which characters."""

from __future__ import annotations

import numpy as np
import tokenizers

from contract.data.text import Span


class HfEncoded:
    """A text's tokens. ids: int32 [tokens]."""

    __slots__ = ("_encoding", "ids")

    def __init__(self, encoding: tokenizers.Encoding) -> None:
        self._encoding = encoding
        self.ids = np.array(encoding.ids, np.int32)

    def tokens_of(self, span: Span) -> tuple[int, int]:
        """The tokens [first, end) that hold any of the characters of a span; first = end where none does.

        So a token that lies across a border counts, on either side: as in transformers' assistant masks and TRL's completion masks.
        Unlike transformers' (5.23), all tokens of the last character count where it takes several, and a first or last character that
        no token holds (the normaliser took it away) does not spoil the rest.
        """
        start, stop = span
        if start == stop:
            return 0, 0
        encoding = self._encoding
        first, last = encoding.char_to_token(start), encoding.char_to_token(stop - 1)
        if first is None or last is None:
            return self._overlapping(start, stop)
        end = last + 1
        while end < len(self.ids) and (characters := encoding.token_to_chars(end)) is not None and characters[0] < stop <= characters[1]:
            end += 1
        return first, end

    def text_ids(self) -> list[int]:
        """The ids without what the post-processor added."""
        own = zip(self.ids.tolist(), self._encoding.sequence_ids, strict=True)
        return [index for index, sequence in own if sequence is not None]

    def _overlapping(self, start: int, stop: int) -> tuple[int, int]:
        """The same from every token's offsets, which takes long to list."""
        offsets = zip(self._encoding.offsets, self._encoding.sequence_ids, strict=True)
        own = [index for index, ((low, high), sequence) in enumerate(offsets) if sequence is not None and low < stop and high > start]
        return (own[0], own[-1] + 1) if own else (0, 0)
