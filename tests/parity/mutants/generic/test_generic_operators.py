"""Each operator on a line of source: what it makes, and that a mutant is one change, found again by its text."""

from __future__ import annotations

import ast

import pytest

from contract.worker.mutation import Mutation
from parity.mutants.generic import operators, statements
from parity.mutants.generic.operators import OPERATORS
from parity.mutants.generic.place import Place

MADE = [
    ("arithmetic", "a + b", ["(a - b)"]),
    ("arithmetic", "(a + b) * c", ["((a + b) / c)", "(a - b)"]),
    ("arithmetic", "a @ b", ["(b @ a)"]),
    ("arithmetic", "'text' + b", []),
    ("comparison", "a < b", ["(a <= b)"]),
    ("comparison", "a is None", ["(a is not None)"]),
    ("boolean", "a and b", ["(a or b)"]),
    ("boolean", "not a", ["a"]),
    ("boolean", "f(x, keepdim=True)", ["False"]),
    ("condition", "a if c else b", ["(b if c else a)"]),
    ("nudge", "x + 0.5", ["0.5000005", "0.5005"]),
    ("nudge", "a / b", ["((a / b) * (1 + 1e-06))", "((a / b) * (1 + 0.001))"]),
    ("nudge", "[0] * n", []),
    ("nudge", "x.shape[0] * 2", []),
    ("off-by-one", "x.sum(3)", ["4", "2"]),
    ("off-by-one", "x[0]", ["1", "(-1)"]),
    ("slice", "x[n:m]", ["n + 1", "m + 1"]),
    ("slice", "x[:-1]", []),
    ("dropped-term", "a + b", ["a", "b"]),
    ("dropped-term", "a - b", ["a"]),
    ("transpose", "w.T", ["w"]),
    ("transpose", "w.transpose(0, 1)", ["w"]),
    ("transpose", "f(w_OI)", ["(w_OI.T if w_OI.ndim == 2 and w_OI.shape[0] == w_OI.shape[1] else w_OI)"]),
    ("transpose", "f(w_BTD)", []),
    ("dtype", "np.float32", ["np.float64", "np.bfloat16"]),
    ("dtype", "x.cast(d)", ["x"]),
    ("dtype", "f('float64')", ["'float32'"]),
    ("neighbour", "x.mean()", ["x.sum()"]),
    ("neighbour", "min(a, b)", ["max(a, b)"]),
    ("neighbour", "x.sqrt()", ["x.rsqrt()"]),
    ("neighbour", "math.sqrt(x)", ["(1 / math.sqrt(x))"]),
    ("keyword", "f(a, eps=e)", ["f(a)"]),
    ("swap", "f(a, b, c)", ["f(b, a, c)", "f(a, c, b)"]),
    ("swap", "isinstance(a, b)", []),
    ("swap", "f(a, 1)", []),
]  # fmt: skip


def of(operator: str, source: str) -> list[Place]:
    return [place for place in operators.places("stacks.made.module", source) if place.operator == operator]


@pytest.mark.parametrize(("operator", "expression", "made"), MADE)
def test_what_an_operator_makes(operator: str, expression: str, made: list[str]) -> None:
    assert [place.after for place in of(operator, f"y = {expression}\n")] == made


def test_every_operator_makes_something() -> None:
    assert {operator for operator, _, made in MADE if made} == set(OPERATORS)


SOURCE = '''"""A module; its docstring says 1 + 1."""

from __future__ import annotations

import math

EPS = 1e-6
HALF = 0.5


def norm(x_TD: list[int], weight: float = 2.0, *, flag: bool = True) -> tuple[int, int]:
    """Says 3."""
    if not x_TD:
        raise ValueError(f"got {len(x_TD) + 1}, need at least {2 + 1}")
    é = weight * math.sqrt(x_TD[0] + EPS) if flag else weight
    y = x_TD[1]
    y = x_TD[1]
    return (
        int(é) + 1,
        int(y) - 1,
    )


def other(x_TD: list[int]) -> int:
    y = x_TD[1]
    return y
'''


def test_a_mutant_is_one_change_that_compiles_and_is_found_by_its_text() -> None:
    places = operators.places("stacks.made.module", SOURCE)
    assert len(places) > 25
    whole = ast.dump(ast.parse(SOURCE))
    for place in places:
        assert SOURCE.count(place.find) == 1
        changed = SOURCE.replace(place.find, place.replace)
        compile(changed, "made", "exec")
        assert ast.dump(ast.parse(changed)) != whole
        assert len(_differing(SOURCE, changed)) <= 4, "lines beside the changed expression differ"
    assert len({place.digest for place in places}) == len(places)


def _differing(one: str, other: str) -> set[str]:
    return set(one.splitlines()) ^ set(other.splitlines())


def test_a_line_that_occurs_twice_is_found_by_the_lines_around_it() -> None:
    lines = {place.line: place.find for place in of("off-by-one", SOURCE) if place.before == "1" and place.line in (16, 17)}
    assert set(lines) == {16, 17}
    assert all(SOURCE.count(find) == 1 and find.count("\n") > 1 for find in lines.values())


def test_a_change_behind_letters_of_several_bytes_takes_the_right_text() -> None:
    (place,) = [place for place in of("neighbour", SOURCE) if place.line == 15]
    assert place.before == "math.sqrt(x_TD[0] + EPS)"
    assert place.replace == "    é = weight * (1 / math.sqrt(x_TD[0] + EPS)) if flag else weight\n"


def test_words_for_a_reader_are_left_alone() -> None:
    lines = {place.line for place in operators.places("stacks.made.module", SOURCE)}
    assert not lines & {1, 3, 5, 12, 13, 14}
    assert {7, 8, 11} <= lines, "constants and defaults are none of these"


def test_a_mutant_plants() -> None:
    place = operators.places("stacks.made.module", SOURCE)[0]
    assert place.stack == "made"
    assert place.name.startswith(f"made.module:{place.operator}:")
    assert Mutation(place.module, place.find, place.replace).find in SOURCE


@pytest.mark.parametrize(("line", "statement"), [(7, None), (11, None), (13, 13), (14, 14), (15, 15), (19, 18), (20, 18), (25, 25)])
def test_the_statement_that_a_line_is_of(line: int, statement: int | None) -> None:
    found = statements.innermost(ast.parse(SOURCE), line)
    assert (None if found is None else found.lineno) == statement
