"""The text-to-SQL suite: questions in regular words about eight small databases, each answered by one short query.

Made from templates by hashing, so that it is the same everywhere. A task is taken only where no query of another family in the suite
gives its rows, nor an answer that says nothing. The training set is made of what no suite of any size has: neither a prompt nor a query
of it is a task's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache

from contract.errors import ContractError
from parity.scorecard.suites.text_to_sql_families import FAMILIES, Draft
from parity.scorecard.suites.text_to_sql_schemas import SCHEMAS, Schema, Value, drawn
from parity.scorecard.task import Task
from parity.scorecard.validators.spec import SqlValidator

NAME = "text_to_sql"

MOST = 1_000
"""Tasks that a suite can have; the rest is for training."""

Rows = tuple[tuple[Value | float | None, ...], ...]
Cell = tuple[Schema, str]


def suite(tasks: int) -> tuple[Task, ...]:
    """The first tasks of the suite: families and schemas take turns, so that every size has as many of each as it can.

    Raises:
        ContractError: it has not so many.
    """
    if tasks > MOST:
        raise ContractError("suite.tasks", got=f"{tasks:,}", allowed=f"{MOST:,} at most", remedy="ask for fewer")
    return tuple(_task(cell, draft, number) for number, (cell, draft) in enumerate(_taken()[:tasks], start=1))


def training(pairs: int) -> bytes:
    """Pairs for `finetune train`, JSONL: prompt, response, and the family as category.

    Raises:
        ContractError: there are not so many.
    """
    taken = {draft.query for _, draft in _taken()} | {_prompt(schema, draft) for (schema, _), draft in _taken()}
    left: dict[Cell, Iterator[Draft]] = {}
    for cell, drafts in _drafts().items():
        left[cell] = (draft for draft in drafts if draft.query not in taken and _prompt(cell[0], draft) not in taken)
    rows: list[dict[str, str]] = []
    while left and len(rows) < pairs:
        for cell in list(left):
            draft = next(left[cell], None)
            if draft is None:
                del left[cell]
            else:
                rows.append({"prompt": _prompt(cell[0], draft), "response": draft.query, "category": cell[1]})
    if len(rows) < pairs:
        raise ContractError("--pairs", got=f"{pairs:,}", allowed=f"{len(rows):,} at most", remedy="ask for fewer")
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows[:pairs])


def _prompt(schema: Schema, draft: Draft) -> str:
    return f"Tables: {schema.described()}\nQuestion: {draft.question}\nAnswer with one SQL query."


def _task(cell: Cell, draft: Draft, number: int) -> Task:
    schema, family = cell
    validator = SqlValidator(kind="sql", database=schema.script(), reference=draft.query, ordered=draft.ordered)
    return Task(
        id=f"{number:04}.{family}.{schema.table}", family=family, prompt=_prompt(schema, draft), language="sql", validators=(validator,),
        reference=draft.query,
    )  # fmt: skip


@cache
def _drafts() -> dict[Cell, tuple[Draft, ...]]:
    """What each family makes of each schema, in an order drawn by hashing; each question and each query once.

    Cells are in the order in which they take turns: all families on some schema, then all of them on another.
    """
    found: dict[Cell, tuple[Draft, ...]] = {}
    for shift in range(len(SCHEMAS)):
        for number, (name, family) in enumerate(FAMILIES.items()):
            schema = SCHEMAS[(number + shift) % len(SCHEMAS)]
            by_query = {draft.query: draft for draft in family(schema)}
            by_question = {draft.question: draft for draft in by_query.values()}
            found[schema, name] = tuple(sorted(by_question.values(), key=lambda draft: drawn(NAME, draft.question)))
    return found


@cache
def _taken() -> tuple[tuple[Cell, Draft], ...]:
    """The MOST tasks of the suite, cells taking turns."""
    waiting = {cell: iter(drafts) for cell, drafts in _drafts().items()}
    taken: list[tuple[Cell, Draft]] = []
    with ExitStack() as exits:
        rows = {schema.table: exits.enter_context(_Rows(schema)) for schema in SCHEMAS}
        while len(taken) < MOST:
            for cell, drafts in waiting.items():
                draft = next((draft for draft in drafts if rows[cell[0].table].claim(cell[1], draft.query)), None)
                if draft is not None:
                    taken.append((cell, draft))
    return tuple(taken[:MOST])


class _Rows:
    """Which family of a schema has which rows: the first that claims them."""

    def __init__(self, schema: Schema) -> None:
        self._database = sqlite3.connect(":memory:")
        self._database.executescript(schema.script())
        tables = (schema.table, schema.linked.table)
        columns = (*schema.columns(), "*", "COUNT(*)")
        trivial = [f"SELECT {column} FROM {tables[0]}" for column in columns]
        trivial += [f"SELECT {column} FROM {tables[1]}" for column in ("*", "COUNT(*)")]
        self._owner = dict.fromkeys((((1,),), ((None,),), (), *map(self._of, trivial)), "")

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _of(self, query: str) -> Rows:
        """The rows of a query, as a multiset."""
        return tuple(sorted(self._database.execute(query).fetchall(), key=repr))

    def claim(self, family: str, query: str) -> bool:
        """Whether these rows are this family's; they are from then on."""
        return self._owner.setdefault(self._of(query), family) == family
