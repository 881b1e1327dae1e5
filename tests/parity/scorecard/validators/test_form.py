"""The form of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.scorecard.validators.form import KINDS, PLACEHOLDERS, Language, canonical, quality

LANGUAGES: tuple[Language, ...] = ("sql", "python", "json", "text")
QUERY = "SELECT city\nFROM shop\nWHERE id = 1"


@pytest.mark.parametrize(
    "answer",
    [
        QUERY,
        f"\n  {QUERY}  \n\n",
        QUERY.replace("\n", "\r\n"),
        QUERY.replace("\n", " \t\n"),
        f"```sql\n{QUERY}\n```",
        f"```\n{QUERY}",
        f"~~~~ sql\n{QUERY}\n~~~~",
        f"Here is the query:\n```sql\n{QUERY}\n```\nIt selects cities.",
        f"Sure! Here's your query:\n\n{QUERY}",
        f"here are the cities: {QUERY}",
        f"Certainly, here is what you asked for\n{QUERY}",
        f"Some words.\n\n```sql\n{QUERY}\n```\nAnd another:\n```sql\nSELECT 2\n```",
        f"````\n{QUERY}\n````",
    ],
)
def test_what_stands_around_code_goes(answer: str) -> None:
    assert canonical(answer) == QUERY


@pytest.mark.parametrize("answer", ["", "SELECT 'here is: x'", "whereis the shop", "adhere is: x", "a\n```", "x = `y`"])
def test_what_is_no_preface_and_no_block_stays(answer: str) -> None:
    assert canonical(answer) == ("" if answer == "a\n```" else answer)


@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="`~"), max_size=60))
def test_it_is_its_own_canonical_form(text: str) -> None:
    bare = canonical(text)
    if not quality(bare, "text").canonical:  # a preface within a preface
        assert "here" in bare.lower()
    assert canonical(bare + "\n") == canonical(bare)


@pytest.mark.parametrize(
    ("answer", "canonical_form", "strict"),
    [
        (QUERY, True, True),
        (QUERY + "\n", False, True),
        (QUERY + "    ", False, True),
        (QUERY + "     ", False, False),
        (f"```\n{QUERY}\n```", False, False),
        ("```\n", False, False),
        (f"Here is it: {QUERY}", False, False),
        ("", True, True),
    ],
)
def test_strictness_is_within_four_characters(answer: str, canonical_form: bool, strict: bool) -> None:
    form = quality(answer, "sql")
    assert (form.canonical, form.strict) == (canonical_form, strict)


@pytest.mark.parametrize("words", PLACEHOLDERS)
def test_each_placeholder_counts_once(words: str) -> None:
    assert quality(f"# {words.upper()}: {words}", "python").placeholder_hits == 1
    assert quality(f"x{words}", "python").placeholder_hits == 0


def test_placeholders_add_up() -> None:
    assert quality("todo tbd placeholder stub not implemented coming soon", "text").placeholder_hits == len(PLACEHOLDERS)
    assert quality("SELECT stubborn FROM todos", "sql").placeholder_hits == 0


@pytest.mark.parametrize(
    ("answer", "language", "trivial"),
    [
        ("", "python", True),
        ("pass", "python", True),
        ("# one\n\npass\n# two", "python", True),
        ("def f():\n    pass", "python", False),
        ("SELECT 1 -- a\n-- b\n/* c\nd */", "sql", True),
        ("SELECT 1\nFROM shop", "sql", False),
        ('{"a":\n1}', "json", False),
    ],
)
def test_trivial_is_at_most_one_line_of_code(answer: str, language: Language, trivial: bool) -> None:
    assert quality(answer, language).trivial == trivial


def test_richness_counts_kinds_of_constructs() -> None:
    kinds = len(KINDS["sql"])
    assert quality("SELECT 1", "sql").richness == 0
    assert quality("SELECT city FROM shop WHERE id = 1 AND id = 2", "sql").richness == 1 / kinds
    assert quality("SELECT city FROM shop WHERE id = 1 ORDER BY city LIMIT 3", "sql").richness == 3 / kinds
    assert quality("SELECT 'where join group by' -- having", "sql").richness == 0
    assert quality('{"a": [1, true, null]}', "json").richness == 1
    everything = (
        "with c as (select 1) select distinct case when a then sum(b) over () end from t join u where 1 group by a having 1 "
        "union select (select 2) order by 1 limit 1"
    )
    assert quality(everything, "sql").richness == 1


def test_a_comprehension_is_a_construct_of_its_own() -> None:
    loop, comprehension = quality("for x in y:\n    z", "python"), quality("[x for x in y]", "python")
    assert comprehension.richness == loop.richness + 1 / len(KINDS["python"])


def test_a_stub_is_none_of_the_good() -> None:
    good = "def f(x):\n    return x + 1"
    assert quality(good, "python").anti_stub
    assert not quality(good + "  # todo", "python").anti_stub
    assert not quality("lambda x: x + 1", "python").anti_stub
    assert not quality("x\ny", "python").anti_stub


PIECES = (
    "[", "(", "{", "'", '"', "`", "/*", "-- ", "here is", " ", "\n", "a", "```\n", "~", "\\", "group ", "x.", "for", " for", "=", "\t\n",
)  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("piece", PIECES)
def test_it_reads_long_answers_in_linear_time(piece: str) -> None:
    """A quadratic pattern would take hours, of the five minutes that a test has."""
    answer = piece * (2**20 // len(piece))
    for language in LANGUAGES:
        quality(answer, language)
