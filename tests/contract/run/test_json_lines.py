"""The lines of a JSON text's values, against a text written with each value on a line of its own."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from contract.run.json_lines import json_lines

KEYS = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from('\n"\\{}[]:,'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def rendered(value: Any, lines: list[str], at: tuple[str | int, ...], where: dict[tuple[str | int, ...], int]) -> None:
    """Appends a value to the last line; each of its entries begins a new one."""
    where[at] = len(lines)
    if not isinstance(value, dict | list):
        lines[-1] += json.dumps(value)
        return
    lines[-1] += "[" if isinstance(value, list) else "{"
    for number, entry in enumerate(value):
        lines.append("\t, " if number else " ")
        key: str | int = number
        if isinstance(value, dict):
            key = entry
            lines[-1] += json.dumps(key)
            lines.append(" :\r ")
            entry = value[key]
        rendered(entry, lines, (*at, key), where)
    lines.append("]" if isinstance(value, list) else "}")


@given(value=VALUES)
def test_every_value_has_its_line(value: Any) -> None:
    lines: list[str] = [""]
    where: dict[tuple[str | int, ...], int] = {}
    rendered(value, lines, (), where)
    text = "\n".join(lines)
    assert json.loads(text) == value
    assert json_lines(text) == where
