"""The Vox tokenizer: a fixed table of 131 ids over bytes.

    0 pad, 1 unk, 2 eos, 3..97 the characters 32..126, 98..130 the words of WORDS in their order

A line feed is no character of that table, so it's unk (1), as are a tab and every byte of a character outside ASCII. The ids are kept,
since checkpoints carry them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from contract.data.special import markup
from contract.data.text import IM_END, IM_START, Rendered, Span

if TYPE_CHECKING:
    import numpy as np

PAD_ID, UNK_ID, EOS_ID = 0, 1, 2
FIRST_CHARACTER, LAST_CHARACTER = 32, 126

WORDS = (
    *("workflow", "activity", "ret ", "let ", "actor ", "fn ", "type ", "import ", "spawn(", "match ", "with {"),
    *("->", "=>", "::", "..", "!=", "==", ">=", "<=", IM_START, IM_END, "```"),
    *("@mcp", "@table", "@query", "@mutation", "@action", "@server", "@test", "@component", "@agent_def", "@skill", "@v0"),
)
"""Tried in this order before single characters; the first match wins."""

_SPELLING = {chr(code).encode(): 3 + code - FIRST_CHARACTER for code in range(FIRST_CHARACTER, LAST_CHARACTER + 1)}
_SPELLING |= {word.encode(): 98 + index for index, word in enumerate(WORDS)}
_TEXT = ["", "\N{REPLACEMENT CHARACTER}", ""] + [spelling.decode() for spelling, _ in sorted(_SPELLING.items(), key=lambda item: item[1])]
_LENGTHS = (1, 1, 1, *(len(text) for text in _TEXT[3:]))

_MARKUP = re.compile("|".join(map(re.escape, (IM_START, IM_END))))


def _splitter(words: Sequence[str]) -> re.Pattern[bytes]:
    return re.compile("|".join(map(re.escape, words)).encode() + b"|.", re.DOTALL)


_WITH_MARKUP = _splitter(WORDS)
_WITHOUT_MARKUP = _splitter([word for word in WORDS if word not in (IM_START, IM_END)])


class VoxEncoded:
    """A text's ids: int32 [tokens], one token after the other over its UTF-8 bytes."""

    def __init__(self, text: str, ids: list[int]) -> None:
        import numpy as np

        self._text, self._ids = text, ids
        self.ids: np.ndarray = np.array(ids, np.int32)
        self._ends: list[int] | None = None

    def tokens_of(self, span: Span) -> tuple[int, int]:
        """The tokens [first, end) that hold any of the characters of a span; first = end where none does."""
        if self._ends is None:
            self._ends = list(accumulate(_LENGTHS[index] for index in self._ids))
        start, end = (position if self._text.isascii() else len(self._text[:position].encode()) for position in span)
        if start == end:
            return 0, 0
        return bisect_right(self._ends, start), bisect_right(self._ends, end - 1) + 1


class VoxTokenizer:
    """The table as a `contract.data.tokenizers.Tokenizer`. The end of sequence is an id that no text spells."""

    vocab_size = 98 + len(WORDS)
    eos_id = EOS_ID
    im_end_id = 98 + WORDS.index(IM_END)
    """What ends a turn; a row ends with it and then with the end of sequence."""

    def encode_batch(self, rows: Sequence[Rendered]) -> list[VoxEncoded]:
        """Texts as ids; <|im_start|> and <|im_end|> in a row's own text are spelt out."""
        return [VoxEncoded(row.text, _encode(row)) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: U+FFFD for unk, nothing for pad and eos.

        Raises:
            ValueError: an id that the table does not have.
        """
        for index in ids:
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"got the id {index}; the Vox table has 0 to {self.vocab_size - 1}")
        return "".join(_TEXT[index] for index in ids)


def _encode(row: Rendered) -> list[int]:
    found = markup(row, _MARKUP)
    if found.whole:
        return _spelt(row.text, _WITH_MARKUP)
    ids: list[int] = []
    position = 0
    for start, end in found.spans:
        ids += _spelt(row.text[position:start], _WITHOUT_MARKUP)
        ids.append(_SPELLING[row.text[start:end].encode()])
        position = end
    return ids + _spelt(row.text[position:], _WITHOUT_MARKUP)


def _spelt(text: str, splitter: re.Pattern[bytes]) -> list[int]:
    return [_SPELLING.get(token, UNK_ID) for token in splitter.findall(text.encode())]
