"""YAML in one meaning: scalars as YAML 1.2 has them, lines, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError
from contract.run.strict_yaml import MAX_VALUES, parse, resolved
from tests.contract.run.contract_draws import TEXT, block, flow

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("Null", None), ("nUll", "nUll"), ("true", True), ("FALSE", False), ("tRue", "tRue"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("y", "y"), ("0", 0), ("-12", -12), ("+12", 12), ("010", 10), ("0o17", 15),
        ("0x1F", 31),
        ("0b1", "0b1"), ("1_000", "1_000"), ("1:30", "1:30"), ("2e-4", 2e-4), ("2E+4", 2e4), ("1.", 1.0), (".5", 0.5), ("-.5e1", -5.0),
        ("1e", "1e"), (".", "."), ("-", "-"), ("e5", "e5"), (".e5", ".e5"),
        ("0x", "0x"), ("-0x1", "-0x1"), ("0o8", "0o8"), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_plain_scalars_of_the_core_schema(text: str, value: object) -> None:
    """YAML 1.2.2, 10.3.2."""
    got = resolved(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"), [(".inf", "inf"), ("-.INF", "-inf"), ("+.Inf", "inf"), (".nan", "nan"), (".NaN", "nan"), (".iNf", ".iNf")]
)
def test_infinity_and_nan_are_numbers_for_others_to_refuse(text: str, value: str) -> None:
    assert str(resolved(text)) == value


@given(value=VALUES)
def test_values_in_flow_and_in_block_style(value: Any) -> None:
    for text in (flow(value), block(value)):
        got, lines, faults = parse(text, "x")
        assert (got, faults) == (value, {})
        assert lines[()] == 1


def test_lines_of_keys_and_entries() -> None:
    text = "# first\na: 1\nb:\n  c: [1,\n    2]\n  d: |\n    x\n    y\ne:\n- f: 3\n- 4\n"
    _, lines, _ = parse(text, "x")
    assert lines == {
        (): 2, ("a",): 2, ("b",): 4, ("b", "c"): 4, ("b", "c", 0): 4, ("b", "c", 1): 5, ("b", "d"): 6, ("e",): 10, ("e", 0): 10,
        ("e", 0, "f"): 10, ("e", 1): 11,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place", "got"),
    [
        ("a: !!int 3", "x:1", "a tag (!...)"),
        ("a: !!python/object/apply:os.system [ls]", "x:1", "a tag (!...)"),
        ("a: 1\nb: ! c", "x:2", "a tag (!...)"),
        ("a: &b 1", "x:1", "an anchor (&...)"),
        ("a: 1\n? *b", "x:2", "an alias (*...)"),
        ("%YAML 1.1\n---\na: 1", "x:1", "a directive (%...)"),
        ("%TAG ! tag:x\n---\na: 1", "x:1", "a directive (%...)"),
        ("a: 1\n---\nb: 1", "x:2", "a second document"),
        ("---\n---\n", "x:2", "a second document"),
        ("[a]: 1", "x:1", "a key that is not plain text"),
        ("a:\n\tb: 1", "x:2", "text that is no YAML (found character '\\t' that cannot start any token)"),
        ("a: [1", "x:1", "text that is no YAML (expected ',' or ']', but got '<stream end>')"),
        ('a: "\\U00110000"', "x", "text that is no YAML (chr() arg not in range(0x110000))"),
        ("[" + "1," * MAX_VALUES, "x:1", f"more than {MAX_VALUES:,} keys and values"),
    ],
)
def test_refused_as_a_whole(text: str, place: str, got: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse(text, "x")
    assert (caught.value.place, caught.value.got) == (place, got)


@pytest.mark.parametrize(
    ("text", "location", "place", "got"),
    [
        ("a: 1\nb: 2\na: 3", ("a",), "x:3: a", "'a' twice, first in line 1"),
        ("a: 1\n'a': {b: [2026-01-31]}", ("a",), "x:2: a", "'a' twice, first in line 1"),
        ("<<: {a: 1}", ("<<",), "x:1: '<<'", "a merge key (<<)"),
        ("a: {1: 2}", ("a", "1"), "x:1: a.'1'", "the key '1', which is no text"),
        ("true: 2", ("true",), "x:1: true", "the key 'true', which is no text"),
        ("~: 2", ("~",), "x:1: '~'", "the key '~', which is no text"),
        ("a: [b, 2026-01-31]", ("a", 1), "x:1: a.1", "the date '2026-01-31'"),
        ("a: 2026-1-3T01:02:03Z", ("a",), "x:1: a", "the date '2026-1-3T01:02:03Z'"),
        ("a: " + "1" * 65, ("a",), "x:1: a", "a number of 65 digits"),
    ],
)
def test_single_faults_are_kept(text: str, location: tuple[str | int, ...], place: str, got: str) -> None:
    _, _, faults = parse(text, "x")
    assert (faults[location].place, faults[location].got) == (place, got)


@pytest.mark.parametrize(
    "text", ["a: '2026-01-31'", 'a: "<<"', "'1': 2", "a: 2026-01", "a: '*b &c !d'", "a: b!c&d*e", "a: |\n  ---\n  %x\n"]
)
def test_quotes_make_a_text(text: str) -> None:
    assert parse(text, "x")[2] == {}


def test_of_equal_keys_the_first_is_read() -> None:
    value, lines, _ = parse("a: {b: 1}\na: {b: {c: 2}}\ne: 3", "x")
    assert value == {"a": {"b": 1}, "e": 3}
    assert lines == {(): 1, ("a",): 1, ("a", "b"): 1, ("e",): 3}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "---\n...\n"])
def test_nothing_is_none(text: str) -> None:
    assert parse(text, "x")[0] is None


def test_a_flags_value_is_one_value() -> None:
    assert parse("{a: [1, {b: c}]}", "x", block=False) == ({"a": [1, {"b": "c"}]}, {}, {})
    assert "over lines" in parse("a: b", "x", block=False)[2][()].got
    with pytest.raises(ContractError, match="got '#c' after the value"):
        parse("b #c", "x", block=False)
