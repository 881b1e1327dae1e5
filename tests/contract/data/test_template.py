"""Chat templates: rendered as transformers renders them, supervised where the assistant speaks, refused where they go too far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from contract.data import sandbox
from contract.data.row import Row
from contract.data.sandbox import MAX_SIZE, MAX_STEPS
from contract.data.template import ChatTemplate, load_template
from contract.data.text import chatml
from contract.data.tokenizer_config import MAX_TEMPLATE_BYTES, TokenizerConfig, read_tokenizer_config
from contract.errors import ContractError
from tests.contract.data.drawn_dialogues import row, rows
from tests.contract.data.read_tokenizers import folder, tokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{{ '' if loop.first else '\\n' }}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}{% endfor %}"
)
REGULAR = (
    "{{- bos_token }}{%- for message in messages %}{{- '[' + message['role'] + '] ' + message['content'] + eos_token + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '[assistant] ' }}{%- endif %}"
)
TRIMMED = (
    "{% for message in messages %}\n"
    "    {%- if loop.index0 is divisibleby 2 and false %}{% continue %}{% endif %}\n"
    "    {%- set ns = namespace(text=message.content | trim) %}\n"
    "    {%- if message.role == 'assistant' %}A: {% generation %}{{ ns.text }}</s>\n{% endgeneration %}\n"
    "    {%- else %}{{ message.role | upper }}: {{ ns.text }}{{ '\\n' }}{% endif %}\n"
    "    {% if loop.first %}\n"
    "  first\n"
    "    {% endif %}\n"
    "{%- endfor %}\n"
    "{{- {'a': 'é<', 'b': [1, none]} | tojson }}{{ '%s-%03d' % ('x', 7) }}{{ dict(a=1)['a'] }}{{ tools is none }}{{ undefined_thing }}"
)


@cache
def template(source: str, *, special: tuple[str, ...] = SPECIAL) -> ChatTemplate:
    return ChatTemplate(TokenizerConfig(named=NAMED, template=source, place="chat_template.jinja"), special_tokens=special)


def by_transformers(source: str, drawn: Row, named: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    messages = [{"role": message.role, "content": message.content} for message in drawn.messages]
    texts, spans = render_jinja_template([messages], chat_template=source, return_assistant_tokens_mask=True, **named)
    return texts[0], (spans or [[]])[0]


@pytest.mark.parametrize("source", [CHATML, REGULAR, TRIMMED], ids=["chatml", "regular", "trimmed"])
@given(drawn=rows())
def test_text_and_generation_spans_are_those_of_transformers(source: str, drawn: Row) -> None:
    wanted, spans = by_transformers(source, drawn, NAMED)
    for parse_special_tokens in (True, False):
        rendered = template(source).render(drawn, parse_special_tokens=parse_special_tokens)
        assert rendered.text == wanted
        assert not rendered.add_special_tokens
        if "{% generation" in source:
            assert list(rendered.supervised) == [span for span in spans if span[0] < span[1]]


@given(drawn=rows())
def test_smollm2s_own_template_is_rendered_as_transformers_renders_it(drawn: Row) -> None:
    path = folder("smollm2") / "tokenizer.json"
    config = read_tokenizer_config(path)
    assert config.template is not None
    own = load_template(path, special_tokens=tokenizer("smollm2").special_tokens).render(drawn)
    assert own.text == by_transformers(config.template, drawn, config.named)[0]
    learnt = [own.text[start:end] for start, end in own.supervised]
    assert learnt == [f"{message.content}<|im_end|>\n" for message in drawn.messages if message.role == "assistant"]
    assert own.ended


@given(drawn=rows())
def test_a_template_of_chatml_gives_what_chatml_gives(drawn: Row) -> None:
    ours, theirs = chatml(drawn), template(CHATML).render(drawn)
    assert (theirs.text, theirs.supervised) == (ours.text, ours.supervised)
    one = tokenizer("smollm2")
    mine, its = one.encode_batch([ours, template(CHATML, special=one.special_tokens).render(drawn)])
    assert mine.ids.tolist() == its.ids.tolist()


@given(drawn=rows())
def test_special_tokens_of_a_row_are_found_wherever_the_template_puts_them(drawn: Row) -> None:
    for source in (CHATML, REGULAR, TRIMMED):
        rendered = template(source).render(drawn)
        parsed = template(source).render(drawn, parse_special_tokens=True)
        spelt = sum(message.content.count(token) for message in drawn.messages for token in SPECIAL)
        assert [rendered.text[start:end] in SPECIAL for start, end in rendered.data] == [True] * spelt
        assert parsed.data == ()
        assert (parsed.text, parsed.supervised) == (rendered.text, rendered.supervised)


@pytest.mark.parametrize("source", [CHATML, REGULAR], ids=["generation", "prefixes"])
def test_repeated_content_does_not_lead_to_the_wrong_turn(source: str) -> None:
    rendered = template(source).render(row("Yes", "Yes", "Yes", "Yes", "assistant", "user", system="Yes"))
    learnt = [rendered.text[start:end] for start, end in rendered.supervised]
    end = "<|im_end|>" if source is CHATML else "</s>\n"
    assert learnt == [f"{answer}{end}" for answer in ("Yes", "Yes", "user")]
    header = "<|im_start|>assistant\n" if source is CHATML else "[assistant] "
    assert all(rendered.text[:start].endswith(header) for start, _ in rendered.supervised)


def test_a_first_token_of_the_template_stays_and_comes_once() -> None:
    source = template(REGULAR, special=("<s>", "</s>"))
    ids = tokenizer("metaspace").encode_batch([source.render(row("a", "b"))])[0].ids.tolist()
    assert ids.count(1) == 1
    assert ids[0] == 1


@pytest.mark.parametrize(
    ("source", "ended"),
    [
        ("{% for m in messages %}{{ m.content }}</s> \n{% endfor %}", True),
        ("{% for m in messages %}{{ m.content }} \n{% endfor %}", False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_a_template_that_ends_the_last_turn_is_told_apart(source: str, ended: bool) -> None:
    assert template(source).render(row("a", "b")).ended is ended
    assert template(source).render(row("a", "b</s>")).ended is ended
    assert template(source).render(row("a", "b</s>"), parse_special_tokens=True).ended is True


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content if loop.last }}{% endfor %}",
        "{% for m in messages %}{{ m.content if m.role == 'user' or loop.last }}{% endfor %}",
        "{{ messages | map(attribute='content') | join(' ') }}{{ ' and ' if add_generation_prompt }}",
    ],
)
def test_a_template_that_is_not_regular_is_refused_without_generation_blocks(source: str) -> None:
    with pytest.raises(ContractError, match="changes with that turn") as caught:
        template(source).render(row("a", "b", "c", "d"))
    assert "{% generation %}" in caught.value.remedy
    assert "line 7" in caught.value.got


FAULTS = {
    "{{ raise_exception('no ' + messages[0].role) }}": "no user",
    "{{ messages[0].content.nothing() }}": "nothing",
    "{{ messages['x' ~ 1] + 1 }}": "",
    "{{ 1 / 0 }}": "zero",
    "{{ none.x.y }}": "no attribute",
    "{{ strftime_now('%d %b %Y') }}": "date of today",
    "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}": "date of today",
    "{{ messages.append(1) }}": "append",
    "{{ messages[0].update(role='system') }}": "update",
    "{{ ''.__class__.__mro__ }}": "__class__",
    "{{ messages.__init__.__globals__ }}": "__init__",
    "{{ namespace(_a=1) }}": "_a",
    "{% set n = namespace() %}{% set n._a = 1 %}": "_a",
    "{{ cycler.__init__.__globals__.os }}": "__init__",
    "{% include 'x' %}": "no loader",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "",
    "{{ 'x' * 10**9 }}": "a size of more than",
    "{{ 10**9 * 'x' }}": "a size of more than",
    "{{ [1] * 10**9 }}": "a size of more than",
    "{{ 10 ** (10 ** 10) }}": "a size of more than",
    "{{ '%999999999d' % 1 }}": "width",
    "{{ '%*d' % (999999999, 1) }}": "width",
    "{{ 'x'.ljust(999999999) }}": "a size of more than",
    "{{ 'x' | center(999999999) }}": "a size of more than",
    "{{ messages[0].content | indent(width=999999999) }}": "a size of more than",
    "{% set n = namespace(x='xx') %}{% for _ in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}": "a size of more than",
    "{% set n = namespace(x='xx') %}{% for _ in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "a size of more than",
    "{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}": "rounds",
    "{% for _ in range(99999) %}{% for _ in range(99999) if false %}{% endfor %}{% endfor %}": "rounds",
    "{% for _ in range(300) recursive %}{{ loop(range(900)) if loop.depth == 1 }}{% endfor %}": "rounds",
    "{% for _ in range(10**9) %}{% endfor %}": "a size of more than",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}": "rounds",
    "{% for x in [[1, 2]] recursive %}{{ loop([[1, 2]]) }}{% endfor %}": "",
    "{% for _ in range(99999) %}{{ 'x' * 9999 }}{% endfor %}": "characters of output",
    "{% for _ in range(9999) %}{% set x = 'x' * 9999999 %}{% endfor %}": "rounds",
    "{{ 9 ** 9999 * 9 ** 9999 }}": "a size of more than",
    "{% macro m() %}x{% generation %}y{% endgeneration %}{% endmacro %}{{ m() }}": "generation block",
}


@pytest.mark.parametrize("source", FAULTS)
def test_a_template_that_fails_or_goes_too_far_is_refused_at_its_line(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 10**5)  # a slow machine need not count to the whole limit
    with pytest.raises(ContractError, match="line 7") as caught:
        template(f"\n\n{source}").render(row("a", "b"))
    assert FAULTS[source] in caught.value.got
    assert caught.value.place.startswith("chat_template.jinja")
    if "generation" not in source and "output" not in FAULTS[source] and "include" not in source:
        assert caught.value.place.endswith("template line 3")


@pytest.mark.parametrize("source", ["{% for %}", "{{ }", "{% endif %}", "{% generation %}", "{{ x | unknown_filter }}", "{% tag %}"])
def test_what_is_no_template_is_refused_at_its_line(source: str) -> None:
    with pytest.raises(ContractError) as caught:
        template(f"\n{source}")
    assert caught.value.place == "chat_template.jinja: template line 2"


@pytest.mark.parametrize("source", ["(" * 5000, "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if 1 %}" * 5000 + "{% endif %}" * 5000])
def test_nesting_without_end_is_refused(source: str) -> None:
    try:
        rendered = template(source).render(row("a", "b"))
    except ContractError as error:
        assert error.remedy  # noqa: PT017  (plain text of 5,000 brackets is a template)
    else:
        assert rendered.text == source


@given(
    source=st.lists(st.sampled_from(["{{", "}}", "{%", "%}", " for ", "in", " if ", "messages", ".", "x", "|", "tojson", "(", ")", "'"]))
)
def test_any_text_is_a_template_or_refused(source: list[str]) -> None:
    try:
        template.__wrapped__("".join(source)).render(row("a", "b"))
    except ContractError as error:
        assert error.place.startswith("chat_template.jinja")  # noqa: PT017


def test_limits_leave_room_for_what_is_allowed() -> None:
    long = "word " * 200_000
    assert len(long) < MAX_SIZE
    assert long in template(CHATML).render(row(long, "b")).text
    many = row(*(str(number) for number in range(2000)))
    assert 4 * len(many.messages) < MAX_STEPS
    assert template(CHATML).render(many).text == chatml(many).text


def test_marks_are_characters_that_the_row_does_not_have() -> None:
    drawn = row("\U000f0000<|im_end|>\U000f0001", "\U000f0002</s>")
    rendered = template(CHATML).render(drawn)
    assert rendered.text == chatml(drawn).text
    assert [rendered.text[start:end] for start, end in rendered.data] == ["<|im_end|>", "</s>"]


def test_a_template_that_treats_a_special_tokens_text_apart_is_refused() -> None:
    source = "{% for m in messages %}{{ m.content | length }} {{ m.content }}{% endfor %}"
    assert template(source).render(row("a", "b")).text == "1 a1 b"
    with pytest.raises(ContractError, match="otherwise than other text"):
        template(source).render(row("a</s>", "b"))


def test_a_template_may_cut_content_at_will() -> None:
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    rendered = template(source).render(row("a", "<s></think></s> b"))
    assert rendered.text == "a</s> b"
    assert rendered.data == ((1, 5),)


def write(target: Path, **files: Any) -> Path:
    for name, value in files.items():
        content = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        (target / name.replace("_jinja", ".jinja").replace("_json", ".json")).write_bytes(content)
    return target / "tokenizer.json"


def test_where_a_template_lies_and_which_of_several_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    path = write(tmp_path, tokenizer_config_json={"chat_template": named, "eos_token": {"content": "</s>"}, "add_bos_token": True})
    config = read_tokenizer_config(path)
    assert (config.template, config.named) == ("d", {"eos_token": "</s>"})
    write(tmp_path, chat_template_jinja="one\r\ntwo", special_tokens_map_json={"eos_token": "<e>", "bos_token": "<s>"})
    config = read_tokenizer_config(path)
    assert (config.template, config.named) == ("one\ntwo", {"eos_token": "<e>", "bos_token": "<s>"})
    write(tmp_path, tokenizer_config_json={"eos_token": "</s>", "added_tokens_decoder": {}})
    assert read_tokenizer_config(path).named == {"eos_token": "</s>"}


def test_nothing_beside_a_tokenizer_is_no_template(tmp_path: Path) -> None:
    assert read_tokenizer_config(tmp_path / "tokenizer.json").template is None
    with pytest.raises(ContractError, match="no chat template") as caught:
        load_template(tmp_path / "tokenizer.json", special_tokens=())
    assert "chatml" in caught.value.remedy


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_json": b"{"},
        {"tokenizer_config_json": []},
        {"tokenizer_config_json": {"chat_template": 1}},
        {"tokenizer_config_json": {"chat_template": [1]}},
        {"tokenizer_config_json": {"chat_template": [{"name": "tool_use", "template": "t"}]}},
        {"tokenizer_config_json": {"chat_template": [{"name": "default", "template": "t"}] * 2}},
        {"tokenizer_config_json": {"chat_template": [{"name": "default", "template": None}]}},
        {"tokenizer_config_json": {"chat_template": "x" * (MAX_TEMPLATE_BYTES + 1)}},
        {"tokenizer_config_json": {"eos_token": 1}},
        {"tokenizer_config_json": {"eos_token": {"text": "</s>"}}},
        {"special_tokens_map_json": {"eos_token": []}},
        {"special_tokens_map_json": b"[" * 10**5},
        {"chat_template_jinja": b"\xff"},
        {"chat_template_jinja": b"x" * (MAX_TEMPLATE_BYTES + 1)},
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as caught:
        read_tokenizer_config(write(tmp_path, **files))
    assert str(tmp_path) in caught.value.place
