"""Texts as token ids: what a tokenizer is here, and the one that a tokenizer.json holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import tokenizers

from contract.data.encoded import HfEncoded
from contract.data.respelt import free_characters, respelt_json, respelt_text
from contract.data.special import Markup, markup, pattern_of
from contract.data.text import IM_END, Rendered, Span
from contract.data.tokenizer_config import read_tokenizer_config
from contract.errors import ContractError, brief
from contract.reading import bytes_of, json_of

EOS_NAMES = (IM_END, "</s>", "<|endoftext|>")
"""The end of sequence is the first of these that the vocabulary has; else what tokenizer_config.json names as eos_token."""

MAX_ID = 2**31 - 1
_REMEDY = "take the tokenizer.json that the model came with"

Result = TypeVar("Result")


class Encoded(Protocol):
    """A text as tokens."""

    @property
    def ids(self) -> np.ndarray:
        """Token ids: int32 [tokens]."""

    def tokens_of(self, span: Span) -> tuple[int, int]:
        """The tokens [first, end) that hold any of the characters of a span; first = end where none does."""


class Tokenizer(Protocol):
    """What turns texts into ids and back."""

    @property
    def vocab_size(self) -> int:
        """The largest id and one: how many rows an embedding needs."""

    @property
    def eos_id(self) -> int:
        """The id that ends a sequence."""

    def encode_batch(self, rows: Sequence[Rendered]) -> Sequence[Encoded]:
        """Texts as ids; a special token that a row's own text spells is ordinary text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelt out."""


class HfTokenizer:
    """A tokenizer.json.

    A row's text is encoded whole, so that a token may lie across any border in it, as it does in use. Where a row spells a special token,
    the same tokenizer with respelt special tokens takes over: so the library itself decides on prefix spaces and stripping, in both.

    special_tokens: the texts of its special tokens (added tokens that are marked special, and the end of sequence).
    """

    def __init__(self, path: Path) -> None:
        """Reads a tokenizer.json. Its settings for padding and truncation are switched off.

        Raises:
            ContractError: it's none that the tokenizers library reads; has BPE dropout; has an id that int32 can't hold; or has no
                token that ends a sequence.
        """
        self._place = str(path)
        self._content = bytes_of(path, remedy=_REMEDY)
        value = self._parsed()
        if value["model"].get("dropout"):
            got, remedy = brief(value["model"]["dropout"]), "set it to null: the ids of a text must not be a matter of chance"
            raise ContractError(f"{self._place}: model.dropout", got=got, allowed="null", remedy=remedy)
        if _untrim(value.get("post_processor")):
            self._content = json.dumps(value, ensure_ascii=False).encode()
        self._tokenizer = self._load(self._content)
        self._respelt: tuple[str, tokenizers.Tokenizer] | None = None

        vocabulary = self._guarded(lambda: self._tokenizer.get_vocab(with_added_tokens=True))
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 0 < self.vocab_size <= MAX_ID:
            got = f"{self.vocab_size - 1} as the largest id" if vocabulary else "no token"
            raise ContractError(f"{self._place}: model.vocab", got=got, allowed=f"tokens with ids under {MAX_ID}", remedy=_REMEDY)
        self.eos_id = self._eos(path, vocabulary)

        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {token.content: index for index, token in added if token.content and (token.special or index == self.eos_id)}
        self.special_tokens = tuple(special)
        self._special = special
        self._pattern = pattern_of(special)
        # Those are looked for in the normalised text, and may turn up where the text spells them in other letters.
        self._normalized = any(token.normalized and token.content in special for _, token in added)
        unknown = value["model"].get("unk_token")
        self._unk_id = vocabulary.get(unknown) if isinstance(unknown, str) else value["model"].get("unk_id")

    def encode_batch(self, rows: Sequence[Rendered]) -> list[HfEncoded]:
        """Texts as ids, without padding or truncation.

        A row that asks for it gets what the post-processor adds (a first <s>), as from transformers' tokenizer; a chat does not.

        Raises:
            ContractError: a text that this tokenizer can't encode, or a special token that it can't spell in ordinary tokens.
        """
        found = [markup(row, self._pattern) for row in rows]
        alike: dict[tuple[bool, bool], list[int]] = {}
        for index, (row, its) in enumerate(zip(rows, found, strict=True)):
            alike.setdefault((its.whole, row.add_special_tokens), []).append(index)
        encoded: dict[int, HfEncoded] = {}
        for (whole, add_special_tokens), chosen in alike.items():
            some = [rows[index] for index in chosen]
            tokenizer, texts = self._tokenizer, [row.text for row in some]
            if not whole:
                tokenizer, spelling = self._respelt_for(some)
                texts = [respelt_text(rows[index].text, found[index].spans, spelling) for index in chosen]
            encodings = self._encode(tokenizer, texts, add_special_tokens, [row.line for row in some])
            encoded.update(zip(chosen, map(HfEncoded, encodings), strict=True))
        ordered = [encoded[index] for index in range(len(rows))]
        for row, one, its in zip(rows, ordered, found, strict=True):
            if self._normalized or not its.whole:
                self._check(row, one, its)
        return ordered

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelt out."""
        return self._guarded(lambda: self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _parsed(self) -> dict[str, Any]:
        value = json_of(self._content, self._place, remedy=_REMEDY)
        if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
            raise ContractError(self._place, got=brief(value), allowed="a tokenizer: an object with a model", remedy=_REMEDY)
        return value

    def _load(self, content: bytes) -> tokenizers.Tokenizer:
        tokenizer = self._guarded(lambda: tokenizers.Tokenizer.from_str(content.decode()))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _guarded(self, call: Callable[[], Result], *, line: int | None = None) -> Result:
        """What the library gives. A panic in it derives from BaseException."""
        try:
            return call()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            place = self._place if line is None else f"{self._place}, for the row in line {line}"
            allowed = f"a tokenizer that tokenizers {tokenizers.__version__} reads and encodes with"
            raise ContractError(place, got=brief(str(error) or type(error).__name__), allowed=allowed, remedy=_REMEDY) from None

    def _eos(self, path: Path, vocabulary: dict[str, int]) -> int:
        named = read_tokenizer_config(path).named.get("eos_token")
        for name in (*EOS_NAMES, named):
            if name is not None and name in vocabulary:
                return vocabulary[name]
        allowed = f"one of {', '.join(EOS_NAMES)}, or the eos_token of the tokenizer_config.json beside it"
        remedy = "name one of its tokens as eos_token there"
        raise ContractError(self._place, got="no token that ends a sequence", allowed=allowed, remedy=remedy)

    def _encode(self, tokenizer: tokenizers.Tokenizer, texts: list[str], add: bool, lines: list[int]) -> list[tokenizers.Encoding]:
        try:
            return self._guarded(lambda: tokenizer.encode_batch(texts, add_special_tokens=add))
        except ContractError:
            for text, line in zip(texts, lines, strict=True):  # one by one, to name the row

                def alone(text: str = text) -> object:
                    return tokenizer.encode(text, add_special_tokens=add)

                self._guarded(alone, line=line)
            raise

    def _respelt_for(self, rows: Sequence[Rendered]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
        texts = [row.text for row in rows]
        if self._respelt is None or any(character in text for text in texts for character in self._respelt[0]):
            characters = free_characters(texts, len(self._special))
            if characters is None:
                got, allowed = "special tokens, and nearly every character for private use", "some of U+F0000 to U+FFFFD left free"
                raise ContractError(f"the row in line {rows[0].line}", got=got, allowed=allowed, remedy="take them out of the text")
            spelling = self._spelling(characters)
            content = json.dumps(respelt_json(self._parsed(), spelling), ensure_ascii=False).encode()
            self._respelt = characters, self._load(content)
        return self._respelt[1], self._spelling(self._respelt[0])

    def _spelling(self, characters: str) -> dict[str, str]:
        return {token: character * len(token) for token, character in zip(self._special, characters, strict=True)}

    def _check(self, row: Rendered, encoded: HfEncoded, its: Markup) -> None:
        """Holds the special tokens that came out against the text's markup."""
        expected = [self._special[row.text[start:end]] for start, end in its.spans]
        ids = frozenset(self._special.values())
        got = [index for index in encoded.text_ids() if index in ids]
        if [index for index in got if index != self._unk_id] != [index for index in expected if index != self._unk_id]:
            named = brief([token for token, index in self._special.items() if index in got])
            raise ContractError(
                f"the row in line {row.line}",
                got=f"text that {self._place} reads as its special tokens ({named} in all)",
                allowed="special tokens from the template only",
                remedy="take them out of the text, or set data.parse_special_tokens",
            )


def _untrim(post_processor: Any) -> bool:
    """Has a post-processor leave offsets as they are, and says whether it did not; ids stay.

    Trimmed offsets don't say which token holds a space.
    """
    changed, pending = False, [post_processor]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            pending.append(one.get("processors"))
            if one.get("trim_offsets") is True:
                one["trim_offsets"] = False
                changed = True
    return changed
