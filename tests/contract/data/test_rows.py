"""One line of a train file: what is a row, what is none, and which message says so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data.row import Message, Row
from contract.data.rows import MAX_LINE_BYTES, noted, parse
from contract.errors import ContractError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PAIR = {"prompt": "p", "response": "r"}


def line(fields: object) -> bytes:
    return json.dumps(fields).encode()


def refusal(content: bytes) -> ContractError:
    with pytest.raises(ContractError) as caught:
        parse(content, 7, "train.jsonl")
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 1000
    return caught.value


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"c{at}"} for at, role in enumerate(roles)]}


@given(
    prompt=TEXT,
    response=TEXT,
    system=st.none() | TEXT,
    rating=st.none() | st.integers(1, 5),
    category=st.none() | TEXT,
    difficulty=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    names=st.tuples(st.sampled_from(["prompt", "instruction"]), st.sampled_from(["response", "output"])),
    ascii_only=st.booleans(),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
)
def test_a_row_of_prompt_and_response(
    prompt: str, response: str, system: str | None, rating: int | None, category: str | None, difficulty: float | None,
    names: tuple[str, str], ascii_only: bool, end: bytes,
) -> None:  # fmt: skip
    fields = {names[0]: prompt, names[1]: response, "system": system, "rating": rating, "category": category, "difficulty": difficulty}
    got = parse(json.dumps(fields, ensure_ascii=ascii_only).encode() + end, 3, "x")
    first = () if system is None else (Message(role="system", content=system),)
    messages = (*first, Message(role="user", content=prompt), Message(role="assistant", content=response))
    assert got == Row(line=3, messages=messages, rating=rating, category=category, difficulty=difficulty)


@given(system=st.booleans(), pairs=st.integers(1, 4), contents=st.lists(TEXT, min_size=9, max_size=9))
def test_a_row_of_messages(system: bool, pairs: int, contents: list[str]) -> None:
    roles = ["system"] * system + ["user", "assistant"] * pairs
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    got = parse(line({"messages": messages, "category": "c"}), 1, "x")
    assert [{"role": message.role, "content": message.content} for message in got.messages] == messages
    assert got.category == "c"


@pytest.mark.parametrize(
    ("content", "place", "got"),
    [
        (b"", "", "an empty line"),
        (b"\n", "", "an empty line"),
        (b" \t\r\n", "", "an empty line"),
        (b"[1]", "", "[1] (list)"),
        (b"3", "", "3 (int)"),
        (b"null", "", "null"),
        (b'{"prompt": "p", "response": "r"', "", "text that is no JSON"),
        (b'{"prompt": "p", "response": "r"} {}', "", "text that is no JSON"),
        (b'\xef\xbb\xbf{"prompt": "p", "response": "r"}', "", "text that is no JSON"),
        (b'{"prompt": "\xff", "response": "r"}', "", "byte 0xff"),
        (b'{"prompt": "\xed\xa0\x80", "response": "r"}', "", "byte 0xed"),
        (b'{"prompt": "\\ud800", "response": "r"}', "", "half of a surrogate pair"),
        (b'{"prompt": "p", "prompt": "q", "response": "r"}', "", "'prompt' twice"),
        (b'{"prompt": "p", "response": "r", "x": NaN}', "", "NaN"),
        (b'{"prompt": "p", "response": "r", "difficulty": 1e999}', "", "the number"),
        (b"[" * 10_000 + b"]" * 10_000, "", "values nested too deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "", "values nested too deep"),
        (line({"prompt": "p"}), "", "no 'response'"),
        (line({"response": "p"}), "", "no 'prompt'"),
        (line({}), "", "no 'prompt'"),
        (line({"prompt": None, "response": "r"}), "", "no 'prompt'"),
        (line(PAIR | {"instruction": "p"}), "", "'prompt' and 'instruction'"),
        (line(PAIR | {"output": "r"}), "", "'response' and 'output'"),
        (line({"prompt": 3, "response": "r"}), ": prompt", "3 (int)"),
        (line({"instruction": "p", "output": ["r"]}), ": output", "['r'] (list)"),
        (line({"prompt": "p\0", "response": "r"}), ": prompt", "text with NUL"),
        (line(PAIR | {"system": True}), ": system", "True (bool)"),
        (line(PAIR | {"category": 2}), ": category", "2 (int)"),
        (line(PAIR | {"input": "more of the prompt"}), ": input", "'more of the prompt'"),
        (line(PAIR | {"context": "more"}), ": context", "'more'"),
        (line(PAIR | {"history": [["a", "b"]]}), ": history", "[['a', 'b']]"),
        (line(turns("user", "assistant") | {"prompt": "p"}), "", "'messages' and 'prompt'"),
        (line(turns("user", "assistant") | {"system": "s"}), "", "'messages' and 'system'"),
        (line({"messages": "hello"}), ": messages", "'hello' (str)"),
        (line({"messages": []}), ": messages", "no message"),
        (line({"messages": ["hello"]}), ": messages.0", "'hello' (str)"),
        (line({"messages": [{"role": "tool", "content": "c"}]}), ": messages.0.role", "'tool'"),
        (line({"messages": [{"role": ["user"], "content": "c"}]}), ": messages.0.role", "['user']"),
        (line({"messages": [{"role": "user"}]}), ": messages.0.content", "null"),
        (line({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), ": messages.0.content", "[{"),
        (line({"messages": [{"role": "user", "content": "c", "weight": 0}]}), ": messages.0", "the field 'weight'"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused_with_its_place(content: bytes, place: str, got: str) -> None:
    fault = refusal(content)
    assert fault.place == f"train.jsonl:7{place}"
    assert fault.got.startswith(got)
    assert "skip_bad_rows" in fault.remedy


@pytest.mark.parametrize(
    "roles",
    [
        ("system",), ("user",), ("assistant",), ("system", "assistant"), ("assistant", "user"), ("user", "assistant", "user"),
        ("user", "user", "assistant"), ("user", "assistant", "assistant"), ("system", "system", "user", "assistant"),
        ("user", "system", "assistant"), ("user", "assistant", "system"), ("user", "assistant") * 6 + ("user",),
    ],
)  # fmt: skip
def test_roles_out_of_turn_are_refused(roles: tuple[str, ...]) -> None:
    fault = refusal(line(turns(*roles)))
    assert fault.place == "train.jsonl:7: messages"
    assert fault.got.startswith(f"the roles {', '.join(roles[:8])}")


@pytest.mark.parametrize("rating", [0, 6, -1, True, False, 3.0, "3", [3], 10**30])
def test_a_rating_is_a_whole_number_from_1_to_5(rating: object) -> None:
    assert refusal(line(PAIR | {"rating": rating})).place == "train.jsonl:7: rating"


@pytest.mark.parametrize("difficulty", [True, "2", [1], 10**400])
def test_a_difficulty_is_a_number(difficulty: object) -> None:
    assert refusal(line(PAIR | {"difficulty": difficulty})).place == "train.jsonl:7: difficulty"


def test_a_line_of_the_limit_passes_and_a_byte_more_does_not() -> None:
    bare = len(line({"prompt": "", "response": "r"}))
    for end in (b"", b"\n", b"\r\n"):
        assert parse(line({"prompt": "p" * (MAX_LINE_BYTES - bare), "response": "r"}) + end, 1, "x").messages[1].content == "r"
        assert "a line of more than" in refusal(line({"prompt": "p" * (MAX_LINE_BYTES - bare + 1), "response": "r"}) + end).got


def test_what_is_let_through_is_noted() -> None:
    row, notes = noted(line({"instruction": "", "output": "", "system": "s", "lane": 1, "input": "", "empty": None}), 1, "x")
    assert [message.content for message in row.messages] == ["s", "", ""]
    assert notes == ["unknown field 'input'", "unknown field 'lane'", "empty user text", "empty assistant text"]
    assert noted(line(PAIR | {"rating": 2}), 1, "x")[1] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
NAMES = st.sampled_from(["prompt", "instruction", "response", "output", "system", "messages", "rating", "category", "difficulty", "input"])


@given(
    content=st.binary(max_size=60)
    | st.dictionaries(NAMES, JSON, max_size=5).map(line)
    | st.lists(st.dictionaries(st.sampled_from(["role", "content", "x"]), JSON | st.sampled_from(["user", "assistant"])), max_size=4).map(
        lambda messages: line({"messages": messages})
    )
)
def test_anything_is_a_row_or_a_contract_error(content: bytes) -> None:
    try:
        row = parse(content, 7, "train.jsonl")
    except ContractError:
        assert refusal(content).place.startswith("train.jsonl:7")
    else:
        assert row.messages[-1].role == "assistant"
