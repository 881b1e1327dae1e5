r"""What a model is to write on: a prompt as text, ended where its answer begins.

    chatml      the turns as in training, then `\n<|im_start|>assistant\n`
    tokenizer   the model's own chat template, with what it writes before an answer
    none        the text as it is: `{system}\n{prompt}`; special tokens that it spells are markup, and the tokenizer's own first token comes
                before it

In the first two the text of system and prompt is content: a special token spelt there is ordinary text, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from contract.data.row import Message, Row
from contract.data.template import ChatTemplate
from contract.data.text import Rendered, chatml, header, plain
from contract.data.tokenizers import Tokenizer
from contract.errors import ContractError

Template = Literal["chatml", "tokenizer", "none"]


def render(prompts: Sequence[str], *, system: str | None, template: Template, chat: ChatTemplate | None = None) -> list[Rendered]:
    """Prompts as text; `line` of each is its number, from 1.

    Args:
        chat: the model's own template, which `tokenizer` needs.

    Raises:
        ContractError: a template that fails on a prompt.
    """
    return [_render(_row(prompt, system, number), template, chat) for number, prompt in enumerate(prompts, start=1)]


def encode(tokenizer: Tokenizer, rendered: Sequence[Rendered]) -> list[list[int]]:
    """The ids of prompts.

    Raises:
        ContractError: a prompt without a token, or one that the tokenizer can't encode.
    """
    found = [encoded.ids.tolist() for encoded in tokenizer.encode_batch(rendered)]
    for row, ids in zip(rendered, found, strict=True):
        if not ids:
            raise ContractError(f"prompt {row.line}", got="no token", allowed="one at least", remedy="give text, or another --template")
    return found


def _row(prompt: str, system: str | None, number: int) -> Row:
    said = () if system is None else (Message(role="system", content=system),)
    return Row(line=number, messages=(*said, Message(role="user", content=prompt)))


def _render(row: Row, template: Template, chat: ChatTemplate | None) -> Rendered:
    if template == "tokenizer":
        assert chat is not None
        return chat.prompt(row)
    if template == "none":
        return replace(plain(row, parse_special_tokens=True), supervised=())
    turns = chatml(row)
    return replace(turns, text=f"{turns.text}\n{header('assistant')}", supervised=())
