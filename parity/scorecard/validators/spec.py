"""What an answer is judged by: one model a kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from contract.artifacts.record import Record

MAX_SOURCE = 2**17
"""Characters of a database's script, a reference or tests."""

Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE)]
Fragments = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=2**14)], ...], Field(strict=False, max_length=256)]


def _identifier(name: str) -> str:
    if not name.isidentifier() or name.startswith("__"):
        raise ValueError(f"got {name!r}; allowed: a Python name that doesn't begin with two underscores")
    return name


class SqlValidator(Record):
    """Syntax: sqlglot and SQLite's parser read one query. Semantics: SQLite's rows for it are those of the reference."""

    kind: Literal["sql"]
    database: Source = Field(description="a script of CREATE TABLE and INSERT that makes the small database")
    reference: Source = Field(description="the query whose rows are right")
    ordered: bool = Field(default=False, description="rows are compared in their order; otherwise as a multiset")


class PythonValidator(Record):
    """Syntax: it compiles. Semantics: its tests pass, which run apart from it and call it over a pipe."""

    kind: Literal["python"]
    entry: Annotated[str, Field(max_length=128), AfterValidator(_identifier)] = Field(description="the function that the tests call")
    tests: Source = Field(description="functions test_* that call the entry by its name; JSON's kinds of values go there and come back")


class JsonValidator(Record):
    """Syntax: it is JSON (RFC 8259, so neither NaN nor Infinity, and no key twice). Semantics: it satisfies a schema."""

    kind: Literal["json"]
    document_schema: dict[str, Any] = Field(description="a JSON Schema, draft 2020-12, that refers to no other document")


class ContainsValidator(Record):
    """Syntax: every text of one list occurs. Semantics: every text of the other does too."""

    kind: Literal["contains"]
    expected: Fragments = Field(default=(), description="what must occur, in this case and spelling, for syntax")
    semantic_expected: Fragments = Field(default=(), description="what must occur, besides, for semantics")


Validator = Annotated[SqlValidator | PythonValidator | JsonValidator | ContainsValidator, Field(discriminator="kind")]
