"""A model's own chat template: a row rendered as transformers renders it, and where in the text the assistant speaks."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2

from contract.data.row import Row
from contract.data.sandbox import SOURCE_NAME, Output, Program
from contract.data.special import pattern_of
from contract.data.text import Rendered, Span
from contract.data.tokenizer_config import TokenizerConfig, read_tokenizer_config
from contract.errors import ContractError, brief

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_REMEDY = "correct the template, or use data.template: chatml"
_UNSUPERVISED = "put {% generation %} and {% endgeneration %} around the assistant's text in the template, or use data.template: chatml"

_TextOf = Callable[[Row, list[dict[str, str]]], tuple[str, tuple[Span, ...]]]
"""A row and its messages -> the whole text, and what is learnt of it."""


class ChatTemplate:
    """A chat template.

    Special tokens that a row spells are marked while the template renders, and the marks are taken out again; so their places are known
    wherever the template puts them. One that the row spells in part and the template completes is the template's.
    """

    def __init__(self, config: TokenizerConfig, *, special_tokens: Sequence[str]) -> None:
        """Compiles.

        Args:
            special_tokens: the texts of the tokenizer's special tokens.

        Raises:
            ContractError: there is none, or it's no template.
        """
        self._place = config.place
        self._named = dict(config.named)
        self._special_tokens = tuple(special_tokens)
        self._special = pattern_of(special_tokens)
        if config.template is None:
            allowed = "a chat_template there, or a chat_template.jinja beside it"
            raise ContractError(self._place, got="no chat template", allowed=allowed, remedy="add one, or use data.template: chatml")
        self._source = config.template
        try:
            self._program = Program(config.template)
        except jinja2.TemplateSyntaxError as error:
            place = f"{self._place}: template line {error.lineno}"
            raise ContractError(place, got=brief(error.message), allowed="a jinja template", remedy=_REMEDY) from None
        except Exception as error:  # Python's compiler has limits of its own, on nesting and size
            raise ContractError(self._place, got=brief(str(error)), allowed="a jinja template", remedy=_REMEDY) from None

    def render(self, row: Row, *, parse_special_tokens: bool = False) -> Rendered:
        """A row's dialogue as text, with what is learnt of it.

        Learnt is what the template's {% generation %} blocks write. A template without them must be regular: what it renders for the
        messages up to an assistant's turn, with `add_generation_prompt`, begins what it renders with that turn, and so on to the end;
        then all that a turn adds is learnt (TRL's completion mask likewise).

        Args:
            parse_special_tokens: special tokens spelt in the row's text are markup.

        Raises:
            ContractError: the template fails on this row, refuses it, goes beyond its limits, asks for today's date, or is not regular.
        """
        return self._render(row, self._spans, parse_special_tokens=parse_special_tokens)

    def prompt(self, row: Row) -> Rendered:
        """A dialogue up to an answer, with what the template writes before one (`add_generation_prompt`); nothing of it is learnt.

        Raises:
            ContractError: as `render`.
        """

        def spans(row: Row, messages: list[dict[str, str]]) -> tuple[str, tuple[Span, ...]]:
            return self._output(row, messages, add_generation_prompt=True).text, ()

        return self._render(row, spans, parse_special_tokens=False)

    def _render(self, row: Row, text_of: _TextOf, *, parse_special_tokens: bool) -> Rendered:
        messages = [{"role": message.role, "content": message.content} for message in row.messages]
        spelt = not parse_special_tokens and any(self._special.search(message["content"]) for message in messages)
        if not spelt:
            return self._rendered(row, *text_of(row, messages), ())
        opening, closing = self._marks(row, messages)
        marked = [
            {**message, "content": self._special.sub(lambda match: f"{opening}{match[0]}{closing}", message["content"])}
            for message in messages
        ]
        text, supervised, data = self._unmarked(*text_of(row, marked), opening, closing)
        if text != text_of(row, messages)[0]:
            got = "a template that renders a special token's text in a row otherwise than other text"
            remedy = "take special tokens out of the row's text, or set data.parse_special_tokens"
            raise ContractError(f"{self._place}: the row in line {row.line}", got=got, allowed="text passed on as it is", remedy=remedy)
        return self._rendered(row, text, supervised, data)

    def _rendered(self, row: Row, text: str, supervised: tuple[Span, ...], data: tuple[Span, ...]) -> Rendered:
        end = len(text.rstrip())
        ended = text.endswith(self._special_tokens, 0, end) and not (data and data[-1][1] >= end)
        return Rendered(text=text, supervised=supervised, data=data, line=row.line, add_special_tokens=False, ended=ended)

    def _spans(self, row: Row, messages: list[dict[str, str]]) -> tuple[str, tuple[Span, ...]]:
        """The whole text, and what is learnt of it."""
        if self._program.generates:
            output = self._output(row, messages)
            return output.text, output.generated
        text = ""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._output(row, messages[:index], add_generation_prompt=True).text
            whole = self._output(row, messages[: index + 1]).text
            if not (prompt.startswith(text) and whole.startswith(prompt)):
                got = f"a template whose text up to turn {index + 1} changes with that turn, for the row in line {row.line}"
                raise ContractError(self._place, got=got, allowed="text that only grows with each turn", remedy=_UNSUPERVISED)
            if len(prompt) < len(whole):
                spans.append((len(prompt), len(whole)))
            text = whole
        return text, tuple(spans)

    def _output(self, row: Row, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> Output:
        variables: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            return self._program.render(**{**variables, **self._named})
        except Exception as error:  # a template's expressions may raise whatever Python raises
            line = _template_line(error.__traceback__)
            place = f"{self._place}: template line {line}" if line else self._place
            got = f"{brief(str(error) or type(error).__name__)} for the row in line {row.line}"
            raise ContractError(place, got=got, allowed="a template that renders every row", remedy=_REMEDY) from None

    def _marks(self, row: Row, messages: list[dict[str, str]]) -> tuple[str, str]:
        """Two characters that neither the template nor the row has."""
        taken = {self._source, *self._named.values(), *(message["content"] for message in messages)}
        used = set("".join(taken))
        free = [chr(code) for code in _PRIVATE_USE[: len(used) + 2] if chr(code) not in used]
        if len(free) < 2:
            got = "special tokens, and every character for private use"
            remedy = "take them out of the text"
            raise ContractError(f"the row in line {row.line}", got=got, allowed="two of U+F0000 to U+FFFFD left free", remedy=remedy)
        return free[0], free[1]

    def _unmarked(
        self, text: str, supervised: tuple[Span, ...], opening: str, closing: str
    ) -> tuple[str, tuple[Span, ...], tuple[Span, ...]]:
        """Text without marks, its spans moved along, and where marked tokens lie in it.

        A template may cut between a mark and its token (`content.split(...)`): then the mark goes, and the token's rest is ordinary text.
        """
        marks = [match.start() for match in re.finditer(f"[{opening}{closing}]", text)]

        def moved(position: int) -> int:
            return position - bisect_left(marks, position)

        data = tuple(
            (moved(match.start(1)), moved(match.end(1))) for match in re.finditer(f"{opening}({self._special.pattern}){closing}", text)
        )
        clean = text.replace(opening, "").replace(closing, "")
        spans = ((moved(start), moved(end)) for start, end in supervised)
        return clean, tuple(span for span in spans if span[0] < span[1]), data


def load_template(tokenizer_json: Path, *, special_tokens: Sequence[str]) -> ChatTemplate:
    """The chat template that lies beside a tokenizer.json.

    Raises:
        ContractError: there is none, or it can't be read.
    """
    return ChatTemplate(read_tokenizer_config(tokenizer_json), special_tokens=special_tokens)


def _template_line(traceback: TracebackType | None) -> int | None:
    """The template's line that an error came from; jinja rewrites its frames to say so."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == SOURCE_NAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
