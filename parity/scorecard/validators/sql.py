"""SQL answers: sqlglot parses one query, and SQLite runs it on a small database in memory that it can only read.

Deterministic where it can be: a budget of SQLite's virtual instructions bounds a query, not a clock. The process around it is bounded in
memory and time for what a single instruction can cost.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import sqlglot
import sqlglot.errors
import sqlglot.expressions

from parity.scorecard.validators.judged import BrokenValidator, Judged
from parity.scorecard.validators.rows import Row, same_rows
from parity.scorecard.validators.spec import SqlValidator

MAX_ROWS = 1000
"""Of a result."""
MAX_STEPS = 5_000_000
"""Virtual instructions of one query: a tenth of a second or so."""
STEPS_A_LOOK = 1000
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
}
READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
FORBIDDEN = frozenset({
    "load_extension", "readfile", "writefile", "edit", "fts3_tokenizer",
    "random", "randomblob", "current_date", "current_time", "current_timestamp",
})  # fmt: skip
"""Functions that reach outside, or give another result each time."""


UNREADABLE = re.compile(r"syntax error$|^incomplete input$|^unrecognized token")
"""What SQLite's own parser says. sqlglot is lenient: `SELECT` alone is a query to it."""


class Refused(ValueError):
    """A query that doesn't run, in words for its author."""


class Unreadable(Refused):
    """Text that is no query."""


def judge(validator: SqlValidator, answer: str) -> Judged:
    """Syntax: one query, as sqlglot reads SQLite's dialect and SQLite's own parser does. Semantics: its rows are those of the reference.

    Raises:
        BrokenValidator: the database or the reference doesn't work.
    """
    try:
        parse(answer)
    except Unreadable as error:
        return Judged.failed(str(error), syntax=False)
    with closing(_database(validator.database)) as connection:
        try:
            expected = run(connection, validator.reference)
        except Refused as error:
            raise BrokenValidator(f"a sql validator's reference: {error}; allowed: one query that SQLite runs; mend it") from error
        roundings = _rounding_count(connection)
        try:
            got = run(connection, answer)
        except Refused as error:
            return Judged.failed(str(error), syntax=not isinstance(error, Unreadable))
    if same_rows(expected, got, ordered=validator.ordered, roundings=roundings):
        return Judged.passed()
    columns = len(got[0]) if got else 0
    return Judged.failed(f"it runs, but its {len(got)} rows" + (f" of {columns} columns" if got else "") + " are not those asked for")


def parse(text: str) -> None:
    """Reads one query.

    Raises:
        Unreadable: it's none.
    """
    try:
        statements = sqlglot.parse(text, read="sqlite")
    except sqlglot.errors.ParseError as error:
        first = error.errors[0] if error.errors else {}
        raise Unreadable(
            f"no SQL: {first.get('description', error)} (line {first.get('line', 1)}, column {first.get('col', 1)})"
        ) from error
    except sqlglot.errors.SqlglotError as error:
        raise Unreadable(f"no SQL: {error}") from error
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    if len(statements) != 1 or not isinstance(statements[0], sqlglot.expressions.Query | sqlglot.expressions.Values):
        kinds = ", ".join(type(one).__name__ if one else "nothing" for one in statements[:5]) or "nothing"
        raise Unreadable(f"got {kinds}; allowed: one query")


def run(connection: sqlite3.Connection, query: str) -> list[Row]:
    """The rows of a query that may only read.

    Raises:
        Unreadable: SQLite can't parse it.
        Refused: SQLite refuses it, or it goes over a limit.
    """
    with _reading_only(connection):
        try:
            found: list[Row] = connection.execute(query).fetchmany(MAX_ROWS + 1)
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise Refused(f"it takes more than {MAX_STEPS:,} of SQLite's instructions") from error
            raise (Unreadable if UNREADABLE.search(str(error)) else Refused)(f"SQLite: {error}") from error
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            raise Refused(f"SQLite: {str(error) or type(error).__name__}") from error
    if len(found) > MAX_ROWS:
        raise Refused(f"it gives more than {MAX_ROWS:,} rows")
    return found


def _database(script: str) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.text_factory = lambda content: content.decode(errors="surrogateescape")
    try:
        connection.executescript(script)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        connection.close()
        raise BrokenValidator(f"a sql validator's database: SQLite: {error}; allowed: a script that SQLite runs; mend it") from error
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    return connection


def _rounding_count(connection: sqlite3.Connection) -> int:
    """Rows of the database, and the division of a mean: how often an aggregate of one table rounds."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    quoted = ('"' + name.replace('"', '""') + '"' for name in tables)
    return 1 + sum(int(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in quoted)


@contextmanager
def _reading_only(connection: sqlite3.Connection) -> Iterator[None]:
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        return int(looks * STEPS_A_LOOK > MAX_STEPS)

    connection.set_authorizer(_authorize)
    connection.set_progress_handler(look, STEPS_A_LOOK)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)


def _authorize(action: int, _: str | None, function: str | None, __: str | None, ___: str | None) -> int:
    if action not in READING or (action == sqlite3.SQLITE_FUNCTION and (function or "").lower() in FORBIDDEN):
        return int(sqlite3.SQLITE_DENY)
    return int(sqlite3.SQLITE_OK)
