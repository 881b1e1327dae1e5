"""A row as text: plain, or ChatML; and which of its characters are learnt, and which are the row's own."""

from __future__ import annotations

from dataclasses import dataclass

from contract.data.row import Role, Row

Span = tuple[int, int]
"""Characters [start, end) of a text."""

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A row as text.

    supervised: characters to be learnt. data: characters that came from the row: a special token spelt there is no markup. Both are
    ascending and disjoint; text outside `data` is the template's own.
    line: the row's line in the train file.
    add_special_tokens: whether the tokenizer's post-processor adds its own (a first token, such as <s>). A chat's markup brings its own.
    ended: the template itself ended the last turn with a special token, so no end of sequence is appended.
    """

    text: str
    supervised: tuple[Span, ...]
    data: tuple[Span, ...]
    line: int
    add_special_tokens: bool
    ended: bool = False


def plain(row: Row, *, parse_special_tokens: bool = False) -> Rendered:
    r"""`{system}\n{prompt}\n{response}`; each further turn on a line of its own; without a system turn, without its line.

    Supervised: the assistant's turns, for a use that asks; the objective last_k goes by position instead.

    Args:
        parse_special_tokens: special tokens spelt in the row's text are markup.
    """
    text = _Text()
    for index, message in enumerate(row.messages):
        if index:
            text.markup("\n")
        text.content(message.content, learnt=message.role == "assistant")
    return text.rendered(row, add_special_tokens=True, parse_special_tokens=parse_special_tokens)


def chatml(row: Row, *, parse_special_tokens: bool = False) -> Rendered:
    r"""`<|im_start|>{role}\n{content}<|im_end|>` a turn, joined by `\n`; none after the last.

    Supervised: each assistant turn's content and its `<|im_end|>`, so that the model learns to stop. The header and the line feed between
    turns are not. Source: https://github.com/openai/openai-python/blob/v0.27.10/chatml.md; TRL's training templates
    (qwen2_5_training.jinja) put the end marker inside {% generation %} too.

    Args:
        parse_special_tokens: special tokens spelt in the row's text are markup.
    """
    text = _Text()
    for index, message in enumerate(row.messages):
        text.markup(f"\n{header(message.role)}" if index else header(message.role))
        learnt = message.role == "assistant"
        text.content(message.content, learnt=learnt)
        text.markup(IM_END, learnt=learnt)
    return text.rendered(row, add_special_tokens=False, parse_special_tokens=parse_special_tokens)


def header(role: Role) -> str:
    """What ChatML writes before a turn's content."""
    return f"{IM_START}{role}\n"


class _Text:
    """A text that grows, and its spans."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._supervised: list[Span] = []
        self._data: list[Span] = []

    def markup(self, text: str, *, learnt: bool = False) -> None:
        start = self._length
        self._pieces.append(text)
        self._length += len(text)
        if not learnt or not text:
            return
        if self._supervised and self._supervised[-1][1] == start:
            start = self._supervised.pop()[0]
        self._supervised.append((start, self._length))

    def content(self, text: str, *, learnt: bool) -> None:
        start = self._length
        self.markup(text, learnt=learnt)
        if text:
            self._data.append((start, self._length))

    def rendered(self, row: Row, *, add_special_tokens: bool, parse_special_tokens: bool) -> Rendered:
        return Rendered(
            text="".join(self._pieces),
            supervised=tuple(self._supervised),
            data=() if parse_special_tokens else tuple(self._data),
            line=row.line,
            add_special_tokens=add_special_tokens,
        )
