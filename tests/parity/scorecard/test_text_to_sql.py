"""The text-to-SQL suite: sound, apart from its training set, the same everywhere, and no task passed by what is no answer to it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from contract.errors import ContractError
from parity.scorecard.suites import text_to_sql
from parity.scorecard.suites.text_to_sql_families import FAMILIES
from parity.scorecard.suites.text_to_sql_schemas import SCHEMAS
from parity.scorecard.task import Task, digest
from parity.scorecard.task_canaries import faults
from parity.scorecard.validators.form import quality
from parity.scorecard.validators.judge import Judge
from parity.scorecard.validators.spec import SqlValidator
from tests.parity.scorecard.scorecard_cases import Judges

TASKS = 800
SHA256 = "d6ee07b68e1e9af397a19d632262175bfd6a209066cf68e2b0d098a5e95e2fa5"
"""Of the suite of 800; where it changes, results before and after are no longer of the same tasks."""


@pytest.fixture(scope="module")
def tasks() -> tuple[Task, ...]:
    return text_to_sql.suite(TASKS)


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    return [json.loads(line) for line in text_to_sql.training(2400).splitlines()]


@pytest.fixture(scope="module")
def rows(tasks: tuple[Task, ...]) -> dict[str, Any]:
    """Each task's rows as a multiset, by SQLite itself."""

    def of() -> Iterator[tuple[str, Any]]:
        for task in tasks:
            with closing(sqlite3.connect(":memory:")) as database:
                database.executescript(validator(task).database)
                yield task.id, tuple(sorted(map(repr, database.execute(task.reference))))

    return dict(of())


def validator(task: Task) -> SqlValidator:
    [found] = task.validators
    assert isinstance(found, SqlValidator)
    return found


def test_it_is_what_it_was(tasks: tuple[Task, ...]) -> None:
    assert digest(tasks) == SHA256
    assert text_to_sql.suite(30) == tasks[:30]


def test_families_and_schemas_are_even(tasks: tuple[Task, ...]) -> None:
    families = Counter(task.family for task in tasks)
    assert set(families) == set(FAMILIES)
    assert len(families) >= 20
    assert max(families.values()) - min(families.values()) <= 1
    schemas = Counter(task.id.rpartition(".")[2] for task in tasks)
    assert set(schemas) == {schema.table for schema in SCHEMAS}
    assert max(schemas.values()) <= 1.2 * min(schemas.values())


def test_ids_prompts_and_queries_are_distinct(tasks: tuple[Task, ...]) -> None:
    for names in ({task.id for task in tasks}, {task.prompt for task in tasks}, {task.reference for task in tasks}):
        assert len(names) == TASKS


def test_no_other_familys_query_gives_a_tasks_rows(tasks: tuple[Task, ...], rows: dict[str, Any]) -> None:
    owner: dict[Any, str] = {}
    for task in tasks:
        assert rows[task.id]
        assert owner.setdefault((task.id.rpartition(".")[2], rows[task.id]), task.family) == task.family


def test_no_query_that_asks_nothing_gives_a_tasks_rows(tasks: tuple[Task, ...], rows: dict[str, Any]) -> None:
    for schema in SCHEMAS:
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(schema.script())
            nothing = [f"SELECT {what} FROM {schema.table}" for what in ("*", "COUNT(*)", *schema.columns())]
            trivial = {tuple(sorted(map(repr, database.execute(query)))) for query in ("SELECT 1", "SELECT NULL", *nothing)}
        assert not [task.id for task in tasks if task.id.endswith(f".{schema.table}") and rows[task.id] in trivial]


def test_a_limit_lies_on_a_number_that_is_there(tasks: tuple[Task, ...], rows: dict[str, Any]) -> None:
    """Else `>` and `>=` are the same, and a wrong answer passes."""
    found = [task for task in tasks if task.family in ("where_over", "where_under")]
    for task in found:
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(validator(task).database)
            loose = task.reference.replace(" > ", " >= ").replace(" < ", " <= ")
            assert tuple(sorted(map(repr, database.execute(loose)))) != rows[task.id]


def test_an_order_that_is_asked_for_is_one_order(tasks: tuple[Task, ...]) -> None:
    ordered = [task for task in tasks if validator(task).ordered]
    assert {task.family for task in ordered} == {"first", "last", "sorted", "sorted_down"}
    for schema in SCHEMAS:
        for place in (0, *range(3, 5)):
            values = [row[place] for row in schema.rows()]
            assert len(set(values)) == len(values)


def test_the_training_set_shares_neither_prompt_nor_query(tasks: tuple[Task, ...], pairs: list[dict[str, str]]) -> None:
    every = text_to_sql.suite(text_to_sql.MOST)
    assert len({pair["prompt"] for pair in pairs}) == len({pair["response"] for pair in pairs}) == 2400
    assert not {task.prompt for task in every} & {pair["prompt"] for pair in pairs}
    assert not {task.reference for task in every} & {pair["response"] for pair in pairs}
    assert {pair["category"] for pair in pairs} == set(FAMILIES)
    assert max(len(pair["prompt"]) for pair in pairs) < 300


def test_more_than_there_is() -> None:
    with pytest.raises(ContractError, match="1,001"):
        text_to_sql.suite(1_001)
    with pytest.raises(ContractError, match="99,999"):
        text_to_sql.training(99_999)


def sound(tasks: tuple[Task, ...]) -> None:
    with Judge() as judge:
        assert list(faults(tasks, Judges(validate=judge.validate, form=quality))) == []


def test_references_of_every_family_pass_their_validators(tasks: tuple[Task, ...]) -> None:
    sound(tasks[: len(FAMILIES)])


@pytest.mark.nightly
def test_every_reference_passes_its_validator() -> None:
    sound(text_to_sql.suite(text_to_sql.MOST))
