"""Every kind of validator through one judge."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psutil
import pytest
from pydantic import TypeAdapter, ValidationError

from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.validators import judge as judging
from parity.scorecard.validators.judge import BrokenValidator, Judge
from parity.scorecard.validators.judged import MAX_WORDS, one_line
from parity.scorecard.validators.spec import ContainsValidator, JsonValidator, PythonValidator, SqlValidator, Validator

SQL = SqlValidator(kind="sql", database="CREATE TABLE t(x); INSERT INTO t VALUES (1), (2);", reference="SELECT sum(x) FROM t")
JSON = JsonValidator(kind="json", document_schema={"type": "array"})
CONTAINS = ContainsValidator(kind="contains", expected=("fn ", "->"), semantic_expected=("u32",))
PYTHON = PythonValidator(
    kind="python",
    entry="inverse",
    tests="def test_value():\n    assert inverse(4, places=2) == 0.25\n"
    "def test_zero():\n    try: inverse(0)\n    except ZeroDivisionError: return\n    assert False, 'zero has no inverse'\n",
)
INVERSE = "def inverse(x, *, places=3):\n    return round(1 / x, places)"
RIGHT = [(SQL, "SELECT 3"), (JSON, "[1]"), (CONTAINS, "fn f() -> u32"), (PYTHON, INVERSE)]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """One for all that leaves its helper whole."""
    with Judge() as one:
        yield one


@pytest.mark.parametrize(("validator", "answer"), RIGHT)
def test_right_answers_pass_bare_and_fenced(judge: Judge, validator: Validator, answer: str) -> None:
    for one in (answer, f"Here is it:\n```\n{answer}\n```\n"):
        judged = judge.validate(validator, one)
        assert (judged.syntax, judged.semantics, judged.errors) == (True, True, ())


@pytest.mark.parametrize(
    ("validator", "answer", "syntax", "error"),
    [
        (SQL, "SELECT 4", True, "its 1 rows of 1 columns are not those asked for"),
        (SQL, "SELECT", False, "incomplete input"),
        (SQL, "a query", False, "got Alias; allowed: one query"),
        (JSON, "{}", True, "not of type 'array'"),
        (JSON, "[", False, "no JSON"),
        (CONTAINS, "fn f() -> u64", True, "not all there"),
        (CONTAINS, "u32 f()", False, "not all there"),
        (PYTHON, "def inverse(x, places=3): return 1 / x if x else 0", True, r"^test_zero: AssertionError: zero has no inverse$"),
        (PYTHON, "def inverse(x): return 1 / x", True, "test_value: TypeError: .*unexpected keyword argument 'places'"),
        (PYTHON, "def inverse(x, places) return 1 / x", False, "SyntaxError: expected ':'"),
        (PYTHON, "x" * 65_537, False, r"got 65,537 characters; allowed: at most 65,536"),
    ],
)
def test_wrong_answers_fail_in_words(judge: Judge, validator: Validator, answer: str, syntax: bool, error: str) -> None:
    judged = judge.validate(validator, answer)
    assert (judged.syntax, judged.semantics) == (syntax, False)
    assert re.search(error, judged.errors[0]), judged.errors
    assert judge.validate(validator, answer) == judged


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("def test_x(:", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("inverse(2)", "only a function test_"),
        ("x = 1", "no function test_"),
    ],
)
def test_wrong_tests_are_no_answers_fault(judge: Judge, tests: str, words: str) -> None:
    with pytest.raises(BrokenValidator, match=words):
        judge.validate(PYTHON.model_copy(update={"tests": tests}), INVERSE)


BROKEN = (SQL.model_copy(update={"reference": "SELECT y FROM t"}), JsonValidator(kind="json", document_schema={"type": 3}))


@pytest.mark.parametrize("validator", BROKEN)
def test_a_broken_validator_comes_back_from_the_helper(judge: Judge, validator: Validator) -> None:
    with pytest.raises(BrokenValidator):
        judge.validate(validator, "SELECT 1")
    assert judge.validate(SQL, "SELECT 3").semantics


def test_the_clock_ends_what_no_budget_does() -> None:
    """A regular expression of a schema that takes for ever."""
    slow = JsonValidator(kind="json", document_schema={"pattern": "^(a+)+$"})
    with Judge(limits=Limits(seconds=1.0)) as judge:
        judged = judge.validate(slow, '"' + "a" * 50 + 'b"')
        assert not judged.semantics
        assert judged.errors == ("judging: it didn't end within 1 s",)


def test_a_helper_that_was_killed_starts_again() -> None:
    before = psutil.Process().children()
    with Judge() as judge:
        assert judge.validate(SQL, "SELECT 3").semantics
        (helper,) = (one for one in psutil.Process().children() if one not in before)
        helper.kill()
        assert judge.validate(SQL, "SELECT 3").errors == ("judging: it ended, or closed its pipe, before it answered",)
        assert judge.validate(SQL, "SELECT 3").semantics
    assert psutil.Process().children() == before


def test_only_python_needs_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(judging, "method", asked.append)
    judge = Judge()
    judge.require([SQL, JSON, CONTAINS])
    assert asked == []
    judge.require([SQL, PYTHON])
    assert asked == ["required"]


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "sql", "database": "x"},
        {"kind": "sql", "database": "x", "reference": "y", "sorted": True},
        {"kind": "python", "entry": "two words", "tests": "x"},
        {"kind": "python", "entry": "__import__", "tests": "x"},
        {"kind": "json", "document_schema": []},
        {"kind": "contains", "expected": [""]},
        {"kind": "shell", "command": "true"},
    ],
)
def test_unknown_and_wrong_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Validator).validate_python(fields)


def test_an_error_is_one_bounded_printable_line() -> None:
    assert one_line("a\nb\x1b[2J \udc80 <f at 0x7f00aa>\u202e") == "a b [2J <f>"
    assert len(one_line("x" * 10_000)) == MAX_WORDS
