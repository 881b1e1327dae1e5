"""SQL answers: right ones, wrong ones, hostile ones."""

from __future__ import annotations

import pytest

from parity.scorecard.validators import sql
from parity.scorecard.validators.judged import BrokenValidator
from parity.scorecard.validators.spec import SqlValidator

DATABASE = """\
CREATE TABLE shop(id INTEGER PRIMARY KEY, city TEXT);
CREATE TABLE sale(id INTEGER PRIMARY KEY, shop_id INTEGER, price REAL, note TEXT);
INSERT INTO shop VALUES (1, 'Bern'), (2, 'Oslo'), (3, 'Bern');
INSERT INTO sale VALUES (1, 1, 0.1, NULL), (2, 1, 0.2, 'a'), (3, 2, 0.3, NULL), (4, 3, 0.7, 'b');
"""
MEAN = "SELECT city, avg(price) FROM shop JOIN sale ON shop.id = shop_id GROUP BY city"
SORTED = "SELECT id FROM sale ORDER BY price DESC"


def validator(reference: str = MEAN, *, ordered: bool = False, database: str = DATABASE) -> SqlValidator:
    """Asks for what the reference gives."""
    return SqlValidator(kind="sql", database=database, reference=reference, ordered=ordered)


@pytest.mark.parametrize(
    "answer",
    [
        MEAN,
        MEAN + ";",
        MEAN + " ORDER BY city DESC",
        "SELECT c.city, sum(s.price) / count(*) FROM sale s, shop c WHERE c.id = s.shop_id GROUP BY 1",
        "WITH joined AS (SELECT * FROM shop JOIN sale ON shop.id = shop_id) SELECT city, sum(price / 3) FROM joined WHERE city = 'Bern' "
        "UNION ALL SELECT 'Oslo', 0.3",
        "-- a comment\n" + MEAN,
        "VALUES ('Oslo', 0.3), ('Bern', (0.7 + 0.2 + 0.1) / 3)",
    ],
)
def test_a_right_answer_passes(answer: str) -> None:
    judged = sql.judge(validator(), answer)
    assert (judged.syntax, judged.semantics, judged.errors) == (True, True, ())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            "SELECT city, max(price) FROM shop JOIN sale ON shop.id = shop_id GROUP BY city",
            "its 2 rows of 2 columns are not those asked for",
        ),
        (MEAN.replace("city, avg(price)", "avg(price), city"), "2 rows of 2 columns"),
        ("SELECT city, 1 FROM shop WHERE 0", "its 0 rows are not"),
        ("SELECT town FROM shop", "no such column: town"),
        ("SELECT city FROM shops", "no such table: shops"),
        ("SELECT median(price) FROM sale", "no such function: median"),
        ("SELECT city FROM shop WHERE id = ?", "variable"),
        ("SELECT 1", "1 rows of 1 columns"),
    ],
)
def test_a_wrong_answer_has_syntax_alone(answer: str, error: str) -> None:
    judged = sql.judge(validator(), answer)
    assert (judged.syntax, judged.semantics) == (True, False)
    assert error in judged.errors[0]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        ";",
        "I don't know.",
        "SELECT",
        "SELECT FROM shop",
        "SELECT (1",
        "SELECT 1; SELECT 2",
        "SELECT * FROM shop WHERE",
        "-- nothing",
        "\x00",
        "SELECT '\udc80",
        "(" * 30_000,
    ],
)
def test_what_is_no_query_has_no_syntax(answer: str) -> None:
    judged = sql.judge(validator(), answer)
    assert (judged.syntax, judged.semantics) == (False, False)
    assert len(judged.errors) == 1


def test_order_counts_where_it_is_asked_for() -> None:
    backwards = "SELECT id FROM sale ORDER BY price"
    assert sql.judge(validator(SORTED, ordered=True), SORTED).semantics
    assert not sql.judge(validator(SORTED, ordered=True), backwards).semantics
    assert sql.judge(validator(SORTED), backwards).semantics


def test_null_is_itself_alone() -> None:
    assert sql.judge(validator("SELECT note FROM sale"), "SELECT note FROM sale ORDER BY id DESC").semantics
    assert not sql.judge(validator("SELECT note FROM sale"), "SELECT coalesce(note, '') FROM sale").semantics


ATTACKS = {
    "attach": "ATTACH DATABASE '/tmp/x.db' AS x",
    "detach": "DETACH DATABASE main",
    "pragma": "PRAGMA journal_mode = OFF",
    "pragma as a table": "SELECT * FROM pragma_database_list",
    "pragma as a function": "SELECT * FROM pragma_table_info('shop')",
    "load_extension": "SELECT load_extension('/usr/lib/libc.so.6')",
    "vacuum into": "VACUUM INTO '/tmp/copy.db'",
    "insert": "INSERT INTO shop VALUES (9, 'Rome')",
    "update": "UPDATE shop SET city = 'Rome'",
    "delete": "DELETE FROM shop",
    "delete in a common table": "WITH gone AS (DELETE FROM shop RETURNING id) SELECT * FROM gone",
    "drop": "DROP TABLE shop",
    "create": "CREATE TEMP TABLE copy AS SELECT * FROM shop",
    "transaction": "BEGIN EXCLUSIVE",
    "two statements": f"{MEAN}; DROP TABLE shop",
    "a second statement after a null byte": f"{MEAN}\x00; DROP TABLE shop",
    "recursion without end": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
    "rows without end": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
    "a sort without end": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r ORDER BY -n",
    "a text that grows": "WITH RECURSIVE r(x) AS (SELECT 'ab' UNION ALL SELECT x || x FROM r) SELECT length(x) FROM r",
    "a huge blob": "SELECT zeroblob(1000000000)",
    "a huge text": "SELECT printf('%1000000000d', 1)",
    "a huge text by replacing": "SELECT replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))",
    "a pattern that takes long": "SELECT hex(zeroblob(400000)) LIKE '" + "%0" * 100 + "1'",
    "a product of tables": "SELECT count(*) FROM " + ", ".join(f"sale s{n}" for n in range(30)),
    "too many tables": "SELECT count(*) FROM " + ", ".join(f"sale s{n}" for n in range(65)),
    "chance": "SELECT city, random() FROM shop",
    "the clock": "SELECT city, CURRENT_TIMESTAMP FROM shop",
    "deep parentheses": "SELECT " + "(" * 300 + "1" + ")" * 300,
    "many terms": "SELECT " + " + ".join(["1"] * 5000),
    "many queries": " UNION ALL ".join(["SELECT 1"] * 600),
    "an explanation": "EXPLAIN SELECT * FROM shop",
    "its own schema": "SELECT sql, name FROM sqlite_master",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_its_task_and_nothing_else(name: str) -> None:
    assert not sql.judge(validator(), ATTACKS[name]).semantics
    assert sql.judge(validator(), MEAN).semantics


def test_errors_hold_nothing_of_what_was_expected() -> None:
    secret = validator("SELECT 'swordfish', 4711 FROM shop")
    for answer in (ATTACKS["pragma"], ATTACKS["chance"], "SELECT town FROM shop", "SELECT city, id FROM shop", "SELECT (", ""):
        words = " ".join(sql.judge(secret, answer).errors)
        assert words
        assert "swordfish" not in words
        assert "4711" not in words


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (validator("SELECT town FROM shop"), "reference: SQLite: no such column: town"),
        (validator("DELETE FROM shop"), "reference: SQLite: not authorized"),
        (validator(ATTACKS["rows without end"]), "reference: it gives more than 1,000 rows"),
        (validator(database="CREATE TABLE"), "database: SQLite: incomplete input"),
    ],
)
def test_a_wrong_validator_is_no_answers_fault(broken: SqlValidator, words: str) -> None:
    with pytest.raises(BrokenValidator, match=words):
        sql.judge(broken, MEAN)
