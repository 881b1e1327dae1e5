"""JSON with nothing left to interpretation: hostile text is refused by one error, sound text is read as `json` reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from contract import reading
from contract.errors import ContractError, ContractErrors, UserError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=values, escaped=st.booleans())
def test_sound_json_is_read_as_it_was_written(value: object, escaped: bool) -> None:
    assert reading.json_of(json.dumps(value, ensure_ascii=escaped).encode(), "here") == value


def place_of_refusal(content: bytes) -> str | None:
    try:
        reading.json_of(content, "here")
    except ContractError as error:
        return error.place
    return None


@given(content=st.binary(max_size=200))
def test_bytes_are_read_or_refused(content: bytes) -> None:
    assert place_of_refusal(content) in (None, "here")


@given(value=values, at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_one_wrong_byte_is_read_or_refused(value: object, at: int, byte: int) -> None:
    content = bytearray(json.dumps(value).encode())
    content[at % len(content)] = byte
    assert place_of_refusal(bytes(content)) in (None, "here")


HOSTILE = {
    "key twice": (b'{"a": 1, "a": 2}', "'a' twice"),
    "key twice, deep": (b'[{"b": {"a": 1, "a": 1}}]', "'a' twice"),
    "NaN": (b"[NaN]", "NaN"),
    "infinity": (b"[-Infinity]", "-Infinity"),
    "a number too large": (b"[1e999]", "'1e999'"),
    "an integer of 5,000 digits": (b"1" * 5000, "an integer of thousands of digits"),
    "deep list": (b"[" * 10_000 + b"]" * 10_000, "too deep"),
    "deep object": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too deep"),
    "no UTF-8": (b'"\xff"', "byte 0xff at offset 1"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "no JSON"),
    "half of a surrogate pair": (b'["\\ud800"]', "surrogate"),
    "NUL": (b'{"a": \x001}', "no JSON"),
    "a control character in a string": (b'"\x01"', "no JSON"),
    "nothing": (b"", "no JSON"),
    "two values": (b"{} {}", "no JSON"),
    "a comment": (b"{} // note", "no JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_by_what_is_wrong_with_it(name: str) -> None:
    content, got = HOSTILE[name]
    with pytest.raises(ContractError) as caught:
        reading.json_of(content, "config.json")
    assert caught.value.place == "config.json"
    assert got in caught.value.got


def test_a_whole_surrogate_pair_is_sound() -> None:
    assert reading.json_of(b'["\\ud83d\\ude00"]', "here") == ["\U0001f600"]


@pytest.mark.parametrize(("kind", "got"), [("missing", "no such file"), ("folder", "a folder"), ("pipe", "no file"), ("large", "11 bytes")])
def test_what_is_no_file_to_read_is_refused(kind: str, got: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "large":
        path.write_bytes(b"x" * 11)
    with pytest.raises(ContractError) as caught:
        reading.bytes_of(path, limit=10)
    assert (caught.value.place, got in caught.value.got) == (str(path), True)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_path_that_no_system_has_is_refused(name: str) -> None:
    with pytest.raises(ContractError):
        reading.bytes_of(Path(name))


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(ContractError, match="got a list; allowed: an object"):
        reading.json_file(path)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    rank: int = Field(default=1, ge=1)
    alpha: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    inner: Inner = Inner()


def test_a_model_is_read() -> None:
    assert reading.validated(Outer, {"name": "a", "inner": {"rank": 2}}, "x.json").inner.rank == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "x.json: name: got nothing; allowed: a value; the field is required; correct it"),
        ({"name": "a", "inner": {"rnk": 1}}, "x.json: inner.rnk: got an unknown field; allowed: rank, alpha; correct it"),
        ({"name": "a", "inner": {"rank": 0}}, "x.json: inner.rank: got 0; allowed: input should be greater than or equal to 1; correct it"),
        ({"name": "a", "inner": {"rank": True}}, "x.json: inner.rank: got True; allowed: input should be a valid integer; correct it"),
    ],
)
def test_one_fault_is_named_with_its_field(value: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        reading.validated(Outer, value, "x.json")
    assert str(caught.value) == message


def test_every_fault_is_named() -> None:
    with pytest.raises(ContractErrors) as caught:
        reading.validated(Outer, {"nme": 1, "inner": {"rank": "1", "alpha": None}}, "x.json")
    assert [fault.place for fault in caught.value.faults] == ["x.json: name", "x.json: inner.rank", "x.json: inner.alpha", "x.json: nme"]


def lines_of_refusal(value: dict[str, object]) -> list[str]:
    try:
        reading.validated(Outer, value, "here")
    except UserError as error:
        return str(error).splitlines()
    return []


@given(value=st.dictionaries(st.sampled_from(["name", "inner", "x"]) | st.text(), values, max_size=4))
def test_any_object_is_a_model_or_refused_with_its_place_on_each_line(value: dict[str, object]) -> None:
    lines = lines_of_refusal(value)
    assert all(line.startswith("here") for line in lines)
    assert bool(lines) == (set(value) - {"name", "inner"} != set() or not isinstance(value.get("name"), str) or not inner_is_sound(value))


def inner_is_sound(value: dict[str, object]) -> bool:
    return value.get("inner", {}) == {} and isinstance(value.get("inner", {}), dict)
