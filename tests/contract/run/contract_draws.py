"""Contracts drawn from the contract's own JSON Schema, so that a new field is drawn, and changed, without a word here.

And writers of YAML and TOML that are nobody's but these tests' own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from contract.run.schema import json_schema

Path = tuple[str, ...]

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)


SCHEMA = json.loads(json_schema())


def leaves(schema: dict[str, Any], at: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every field that is a value, with its part of the schema."""
    for name, part in schema["properties"].items():
        if "$ref" in part:
            yield from leaves(SCHEMA["$defs"][part["$ref"].rsplit("/", 1)[1]], (*at, name))
        else:
            yield (*at, name), part


FIELDS = dict(leaves(SCHEMA))


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a part of the schema lets in."""
    if "anyOf" in schema:
        return st.one_of([values(part) for part in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if "pattern" in schema:
        return st.from_regex(re.compile(schema["pattern"], re.ASCII), fullmatch=True).filter(lambda text: "\n" not in text)
    kind = schema["type"]
    if kind == "array":
        return st.lists(values(schema["items"]), max_size=4, unique=True)
    if kind == "object":
        [(pattern, inner)] = schema["patternProperties"].items()
        return st.dictionaries(values({"type": "string", "pattern": pattern}), values(inner), max_size=3)
    if kind == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    if kind == "number":
        low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
        return st.floats(low, high, exclude_min="minimum" not in schema, exclude_max="maximum" not in schema)
    if kind == "string":
        return TEXT.filter(lambda text: len(text) >= schema.get("minLength", 0))
    return {"boolean": st.booleans(), "null": st.none()}[kind]


DRAWN = {path: values(schema) for path, schema in FIELDS.items()}
REQUIRED = ("data", "train_file")


def contracts() -> st.SearchStrategy[dict[str, Any]]:
    """A contract as JSON has it: the required fields and up to six others."""
    others = st.sets(st.sampled_from(sorted(FIELDS.keys() - {REQUIRED})), max_size=6).map(sorted)
    drawn = others.flatmap(lambda paths: st.fixed_dictionaries({path: DRAWN[path] for path in (*paths, REQUIRED)}))
    return drawn.map(nested)


def nested(fields: dict[Path, Any]) -> dict[str, Any]:
    """Fields by path as a contract's document; `model` and `data` are always there."""
    contract: dict[str, Any] = {"model": {}, "data": {}}
    for path, value in fields.items():
        section = contract
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return contract


def quoted(text: str) -> str:
    """A text as YAML's and TOML's double quotes both have it."""
    return (
        '"' + "".join(sign if sign.isascii() and sign.isprintable() and sign not in '"\\' else f"\\U{ord(sign):08x}" for sign in text) + '"'
    )


def flow(value: Any, *, colon: str = ":") -> str:
    """A value on one line: YAML with a colon, TOML with an equals sign."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} {colon} {flow(inner, colon=colon)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(inner, colon=colon) for inner in value) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def block(value: Any, indent: str = "") -> str:
    """YAML over lines."""
    if not value or not isinstance(value, dict | list):
        return f"{indent}{flow(value)}\n"
    heads = [f"{indent}{quoted(key)}:" for key in value] if isinstance(value, dict) else [f"{indent}-"] * len(value)
    entries = value.values() if isinstance(value, dict) else value
    return "".join(f"{head}\n{block(entry, indent + ' ')}" for head, entry in zip(heads, entries, strict=True))


def toml(contract: dict[str, Any]) -> str:
    """Null is what TOML has no word for: left out, as every field that may be null is null by default."""
    given = {name: value for name, value in contract.items() if value is not None}
    lines = [f"{name} = {flow(value, colon='=')}" for name, value in given.items() if not isinstance(value, dict)]
    for name, table in given.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {flow(value, colon='=')}" for key, value in table.items() if value is not None)]
    return "\n".join(lines) + "\n"
