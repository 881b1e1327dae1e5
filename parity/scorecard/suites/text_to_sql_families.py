"""The families of the text-to-SQL suite: each a template of question and query, filled from a schema in every way that it has.

Limits of comparisons are numbers that the table holds, so that `>` and `>=` differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from parity.scorecard.suites.text_to_sql_schemas import Schema


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question about a schema, and the query that answers it. ordered: the order of rows is asked for."""

    question: str
    query: str
    ordered: bool = False


Family = Callable[[Schema], Iterator[Draft]]


def _equals(schema: Schema) -> Iterator[tuple[str, str]]:
    """Every text column with each of its values."""
    return ((column, value) for column, values in schema.texts.items() for value in values)


def _limits(schema: Schema) -> Iterator[tuple[str, int]]:
    """Every number column with each number that it holds, but for the outermost: some rows lie on either side."""
    for column in schema.numbers:
        for limit in held(schema, column)[3:-3]:
            yield column, limit


def held(schema: Schema, column: str) -> list[int]:
    """The numbers in a column, ascending."""
    place = schema.columns().index(column)
    return sorted(number for row in schema.rows() if isinstance(number := row[place], int))


def _shown(schema: Schema) -> tuple[str, ...]:
    """Columns that a question may ask for: the name and the numbers."""
    return (schema.name, *schema.numbers)


def _compared(word: str, sign: str) -> Family:
    def family(schema: Schema) -> Iterator[Draft]:
        for (column, limit), shown in itertools.product(_limits(schema), (schema.name, *schema.texts)):
            yield Draft(
                question=f"List the {shown} of {schema.table} whose {column} is {word} {limit}.",
                query=f"SELECT {shown} FROM {schema.table} WHERE {column} {sign} {limit}",
            )

    return family


def _where_equal(schema: Schema) -> Iterator[Draft]:
    for (column, value), shown in itertools.product(_equals(schema), _shown(schema)):
        yield Draft(
            question=f"List the {shown} of {schema.table} whose {column} is {value}.",
            query=f"SELECT {shown} FROM {schema.table} WHERE {column} = '{value}'",
        )


def _where_not_equal(schema: Schema) -> Iterator[Draft]:
    for (column, value), shown in itertools.product(_equals(schema), _shown(schema)):
        yield Draft(
            question=f"List the {shown} of {schema.table} whose {column} is not {value}.",
            query=f"SELECT {shown} FROM {schema.table} WHERE {column} <> '{value}'",
        )


def _two_columns(schema: Schema) -> Iterator[Draft]:
    for (column, value), number in itertools.product(_equals(schema), schema.numbers):
        yield Draft(
            question=f"List the {schema.name} and {number} of {schema.table} whose {column} is {value}.",
            query=f"SELECT {schema.name}, {number} FROM {schema.table} WHERE {column} = '{value}'",
        )


def _between(schema: Schema) -> Iterator[Draft]:
    for column in schema.numbers:
        numbers = held(schema, column)
        for start, length in itertools.product(range(1, len(numbers) - 4), (3, 6, 10)):
            if start + length < len(numbers) - 1:
                low, high = numbers[start], numbers[start + length]
                yield Draft(
                    question=f"List the {schema.name} of {schema.table} whose {column} is from {low} to {high}.",
                    query=f"SELECT {schema.name} FROM {schema.table} WHERE {column} BETWEEN {low} AND {high}",
                )


def _and(schema: Schema) -> Iterator[Draft]:
    for (column, value), (number, limit) in itertools.product(_equals(schema), _limits(schema)):
        yield Draft(
            question=f"List the {schema.name} of {schema.table} whose {column} is {value} and {number} is over {limit}.",
            query=f"SELECT {schema.name} FROM {schema.table} WHERE {column} = '{value}' AND {number} > {limit}",
        )


def _or(schema: Schema) -> Iterator[Draft]:
    for (column, value), (number, limit) in itertools.product(_equals(schema), _limits(schema)):
        yield Draft(
            question=f"List the {schema.name} of {schema.table} whose {column} is {value} or {number} is over {limit}.",
            query=f"SELECT {schema.name} FROM {schema.table} WHERE {column} = '{value}' OR {number} > {limit}",
        )


def _both(schema: Schema) -> Iterator[Draft]:
    (one, first), (two, second) = schema.texts.items()
    for value, other in itertools.product(first, second):
        for shown in _shown(schema):
            yield Draft(
                question=f"List the {shown} of {schema.table} whose {one} is {value} and {two} is {other}.",
                query=f"SELECT {shown} FROM {schema.table} WHERE {one} = '{value}' AND {two} = '{other}'",
            )


def _among(schema: Schema) -> Iterator[Draft]:
    for column, values in schema.texts.items():
        for one, two in itertools.combinations(values, 2):
            for shown in _shown(schema):
                yield Draft(
                    question=f"List the {shown} of {schema.table} whose {column} is {one} or {two}.",
                    query=f"SELECT {shown} FROM {schema.table} WHERE {column} IN ('{one}', '{two}')",
                )


def _begins(schema: Schema) -> Iterator[Draft]:
    letters = sorted({str(row[0])[0] for row in schema.rows()})
    for letter, shown in itertools.product(letters, (schema.name, *schema.numbers)):
        yield Draft(
            question=f"List the {shown} of {schema.table} whose {schema.name} begins with {letter}.",
            query=f"SELECT {shown} FROM {schema.table} WHERE {schema.name} LIKE '{letter}%'",
        )


def _count_equal(schema: Schema) -> Iterator[Draft]:
    for (column, value), (number, limit) in itertools.product(_equals(schema), _limits(schema)):
        yield Draft(
            question=f"How many {schema.table} have {column} {value} and {number} under {limit}?",
            query=f"SELECT COUNT(*) FROM {schema.table} WHERE {column} = '{value}' AND {number} < {limit}",
        )


def _count_over(schema: Schema) -> Iterator[Draft]:
    for column, limit in _limits(schema):
        yield Draft(
            question=f"How many {schema.table} have {column} over {limit}?",
            query=f"SELECT COUNT(*) FROM {schema.table} WHERE {column} > {limit}",
        )


def _extreme(word: str, function: str) -> Family:
    def family(schema: Schema) -> Iterator[Draft]:
        for (column, value), number in itertools.product(_equals(schema), schema.numbers):
            yield Draft(
                question=f"What is the {word} {number} of {schema.table} whose {column} is {value}?",
                query=f"SELECT {function}({number}) FROM {schema.table} WHERE {column} = '{value}'",
            )

    return family


def _first(word: str, direction: str) -> Family:
    def family(schema: Schema) -> Iterator[Draft]:
        for number, (column, value), count in itertools.product(schema.numbers, _equals(schema), (2, 3)):
            yield Draft(
                question=f"List the {schema.name} of the {count} {schema.table} with the {word} {number} whose {column} is {value}.",
                query=f"SELECT {schema.name} FROM {schema.table} WHERE {column} = '{value}' ORDER BY {number}{direction} LIMIT {count}",
                ordered=True,
            )

    return family


def _sorted(word: str, direction: str) -> Family:
    def family(schema: Schema) -> Iterator[Draft]:
        for (column, value), number in itertools.product(_equals(schema), schema.numbers):
            others = [other for other in schema.texts if other != column]
            for shown in (schema.name, *others):
                yield Draft(
                    question=f"List the {shown} of {schema.table} whose {column} is {value}, sorted by {number} {word}.",
                    query=f"SELECT {shown} FROM {schema.table} WHERE {column} = '{value}' ORDER BY {number}{direction}",
                    ordered=True,
                )

    return family


def _grouped(word: str, function: str) -> Family:
    def family(schema: Schema) -> Iterator[Draft]:
        for column, (number, limit) in itertools.product(schema.texts, _limits(schema)):
            other = next(name for name in schema.numbers if name != number)
            what, query = (
                (f"{word} {schema.table}", "COUNT(*)")
                if function == "COUNT"
                else (f"{word} {other} of {schema.table}", f"{function}({other})")
            )
            yield Draft(
                question=f"For each {column}, give the {what} whose {number} is over {limit}.",
                query=f"SELECT {column}, {query} FROM {schema.table} WHERE {number} > {limit} GROUP BY {column}",
            )

    return family


def _having(schema: Schema) -> Iterator[Draft]:
    for column, (number, limit), count in itertools.product(schema.texts, _limits(schema), (2, 3)):
        yield Draft(
            question=f"Which {column} have over {count} {schema.table} whose {number} is under {limit}?",
            query=f"SELECT {column} FROM {schema.table} WHERE {number} < {limit} GROUP BY {column} HAVING COUNT(*) > {count}",
        )


def _joined(schema: Schema) -> Iterator[Draft]:
    linked = schema.linked
    for value, shown in itertools.product(dict.fromkeys(linked.texts), (schema.name, *schema.numbers, *list(schema.texts)[1:])):
        yield Draft(
            question=f"List the {shown} of {schema.table} whose {schema.link} has {linked.text} {value}.",
            query=f"SELECT {shown} FROM {schema.table} JOIN {linked.table} USING ({schema.link}) WHERE {linked.text} = '{value}'",
        )


def _joined_number(schema: Schema) -> Iterator[Draft]:
    linked = schema.linked
    for limit, shown in itertools.product(sorted(linked.numbers)[:-1], (schema.name, *schema.numbers, *list(schema.texts)[1:])):
        yield Draft(
            question=f"List the {shown} of {schema.table} whose {schema.link} has {linked.number} over {limit}.",
            query=f"SELECT {shown} FROM {schema.table} JOIN {linked.table} USING ({schema.link}) WHERE {linked.number} > {limit}",
        )


def _above_average(schema: Schema) -> Iterator[Draft]:
    for (column, value), number in itertools.product(_equals(schema), schema.numbers):
        inner = f"SELECT AVG({number}) FROM {schema.table} WHERE {column} = '{value}'"
        yield Draft(
            question=f"List the {schema.name} of {schema.table} whose {number} is over the average of {column} {value}.",
            query=f"SELECT {schema.name} FROM {schema.table} WHERE {number} > ({inner})",
        )


FAMILIES: dict[str, Family] = {
    "where_equal": _where_equal,
    "where_not_equal": _where_not_equal,
    "where_over": _compared("over", ">"),
    "where_under": _compared("under", "<"),
    "where_between": _between,
    "where_and": _and,
    "where_or": _or,
    "where_both": _both,
    "where_in": _among,
    "where_like": _begins,
    "two_columns": _two_columns,
    "count_where": _count_equal,
    "count_over": _count_over,
    "maximum": _extreme("highest", "MAX"),
    "minimum": _extreme("lowest", "MIN"),
    "total": _extreme("total", "SUM"),
    "average": _extreme("average", "AVG"),
    "first": _first("lowest", ""),
    "last": _first("highest", " DESC"),
    "sorted": _sorted("from low to high", ""),
    "sorted_down": _sorted("from high to low", " DESC"),
    "group_count": _grouped("number of", "COUNT"),
    "group_maximum": _grouped("highest", "MAX"),
    "group_having": _having,
    "join": _joined,
    "join_over": _joined_number,
    "above_average": _above_average,
}
