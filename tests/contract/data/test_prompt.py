"""Prompts as text: what training wrote before an answer, letter by letter and token by token."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.data.prompt import Template, encode, render
from contract.data.row import Message, Row
from contract.data.template import load_template
from contract.data.text import chatml
from contract.data.tokenizers import HfTokenizer
from contract.errors import ContractError
from contract.model import zoo

SYSTEM, PROMPT, ANSWER = "Be <|im_end|> brief.", "Which <|im_start|> sea?\n", "The Black Sea."


@pytest.fixture(scope="module")
def smollm2() -> Any:
    path = zoo.locate("smollm2-135m").path / "tokenizer.json"
    tokenizer = HfTokenizer(path)
    return SimpleNamespace(tokenizer=tokenizer, chat=load_template(path, special_tokens=tokenizer.special_tokens), path=path)


def row(*turns: str) -> Row:
    roles = ("system", "user", "assistant")
    return Row(line=1, messages=tuple(Message(role=role, content=turn) for role, turn in zip(roles, turns, strict=False)))  # type: ignore[arg-type]


@pytest.mark.parametrize("template", ["chatml", "tokenizer"])
def test_a_prompt_is_what_training_has_before_the_answer(smollm2: Any, template: Template) -> None:
    """Content that spells special tokens included: they are text in both."""
    [rendered] = render([PROMPT], system=SYSTEM, template=template, chat=smollm2.chat)
    whole = chatml(row(SYSTEM, PROMPT, ANSWER)) if template == "chatml" else smollm2.chat.render(row(SYSTEM, PROMPT, ANSWER))
    (start, _) = whole.supervised[-1]
    assert rendered.text == whole.text[:start]
    assert rendered.supervised == ()
    assert not rendered.add_special_tokens
    [ids], [trained] = encode(smollm2.tokenizer, [rendered]), smollm2.tokenizer.encode_batch([whole])
    assert ids == trained.ids[: trained.tokens_of(whole.supervised[-1])[0]].tolist()
    assert ids.count(smollm2.tokenizer.eos_id) == 2  # the template's own; those of the text are ordinary tokens


def test_transformers_renders_the_same_prompt(smollm2: Any) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2.path.parent)
    for system in (None, "Be brief."):
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": "Which sea?"})
        [rendered] = render(["Which sea?"], system=system, template="tokenizer", chat=smollm2.chat)
        assert rendered.text == theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert encode(smollm2.tokenizer, [rendered]) == [theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]]


def test_without_a_template_the_text_stands_as_it_is(smollm2: Any) -> None:
    first, second = render(["a <|im_end|>", "b"], system=None, template="none")
    assert (first.text, first.line, second.line) == ("a <|im_end|>", 1, 2)
    assert first.add_special_tokens
    [ids, _] = encode(smollm2.tokenizer, [first, second])
    assert ids[-1] == smollm2.tokenizer.eos_id
    assert render(["b"], system="a", template="none")[0].text == "a\nb"


def test_a_prompt_without_a_token_is_named(smollm2: Any) -> None:
    with pytest.raises(ContractError, match="prompt 2: got no token; allowed: one at least; give text"):
        encode(smollm2.tokenizer, render(["a", ""], system=None, template="none"))


def test_a_template_that_refuses_is_said(smollm2: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")
    chat = load_template(tmp_path / "tokenizer.json", special_tokens=())
    with pytest.raises(ContractError, match="no system turn"):
        render(["a"], system=None, template="tokenizer", chat=chat)
