"""Comparing rows: what is the same, what is not."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.scorecard.validators.rows import UNIT_ROUNDOFF, Row, Value, gamma, same_rows, same_value

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([0, 0.0, -0.0, 1, 1.0, "1", b"1", ""]),
)
ROWS = st.integers(0, 3).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), max_size=6))
SEEDS = st.integers(0, 2**32)


@given(rows=ROWS, seed=SEEDS)
def test_a_shuffled_result_is_the_same_multiset(rows: list[Row], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert same_rows(rows, shuffled, ordered=False, roundings=0)
    assert same_rows(rows, shuffled, ordered=True, roundings=0) == all(
        same_value(one, other, 0.0) for pair in zip(rows, shuffled, strict=True) for one, other in zip(*pair, strict=True)
    )


@given(rows=ROWS.filter(bool), seed=SEEDS, ordered=st.booleans())
def test_a_missing_and_a_repeated_row_are_seen(rows: list[Row], seed: int, ordered: bool) -> None:
    chosen = random.Random(seed).randrange(len(rows))
    assert not same_rows(rows, rows[:chosen] + rows[chosen + 1 :], ordered=ordered, roundings=3)
    assert not same_rows(rows, [*rows, rows[chosen]], ordered=ordered, roundings=3)


@given(rows=ROWS.filter(lambda rows: bool(rows and rows[0])), seed=SEEDS, ordered=st.booleans())
def test_one_changed_value_is_seen(rows: list[Row], seed: int, ordered: bool) -> None:
    draw = random.Random(seed)
    row, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    changed = [list(one) for one in rows]
    changed[row][column] = "a text that no draw holds"
    assert not same_rows(rows, [tuple(one) for one in changed], ordered=ordered, roundings=3)


@given(one=VALUES, other=VALUES)
def test_values_are_the_same_as_sqlite_says(one: Value, other: Value) -> None:
    import sqlite3

    if not any(isinstance(value, str) for value in (one, other)):  # a text of surrogates goes into no statement
        connection = sqlite3.connect(":memory:")
        assert same_value(one, other, 0.0) == bool(connection.execute("SELECT ? IS ?", (one, other)).fetchone()[0])
        connection.close()


@given(rows=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), seed=SEEDS)
def test_a_sum_in_another_order_is_the_same(rows: list[float], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    means = [sum_in_order(values) / len(values) for values in (rows, shuffled)]
    assert same_rows([(means[0],)], [(means[1],)], ordered=True, roundings=len(rows) + 1)


def sum_in_order(values: list[float]) -> float:
    """Without the compensation that sum() has had since Python 3.12."""
    total = 0.0
    for value in values:
        total += value
    return total


@given(value=st.floats(1e-300, 1e300), roundings=st.integers(16, 1000))
def test_the_bound_is_where_it_is_said_to_be(value: float, roundings: int) -> None:
    within, beyond = value * (1 + 0.5 * gamma(roundings)), value * (1 + 2 * gamma(roundings) + 2 * UNIT_ROUNDOFF)
    assert same_value(value, within, gamma(roundings))
    assert not same_value(value, beyond, gamma(roundings))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, 0),
        (None, ""),
        (3, "3"),
        ("a", b"a"),
        ("a", "A"),
        ("a", "a "),
        (1, 2),
        (math.inf, 1e308),
        (math.inf, -math.inf),
        (2**53, 2**53 + 1),
    ],
)
def test_what_is_not_the_same(one: Value, other: Value) -> None:
    assert not same_value(one, other, gamma(10))
    assert not same_value(other, one, gamma(10))


def test_columns_count() -> None:
    assert not same_rows([(1,)], [(1, 1)], ordered=False, roundings=1)
    assert same_rows([], [], ordered=False, roundings=1)


def brute_force(expected: list[Row], got: list[Row], relative: float) -> bool:
    """Any pairing."""

    def fits(order: tuple[Row, ...]) -> bool:
        return all(same_value(one[0], other[0], relative) for one, other in zip(expected, order, strict=True))

    return len(expected) == len(got) and any(map(fits, itertools.permutations(got)))


MOVED = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-1, 0, 1, 1, -1, 2])), min_size=2, max_size=6)
"""Steps, and how far each is moved."""


def at(step: int) -> Row:
    """Numbers about a bound apart: the same as the next, not as the one after that."""
    return (1 + step * gamma(16) * 0.6,)


@given(moved=MOVED, seed=SEEDS)
def test_pairing_is_found_wherever_there_is_one(moved: list[tuple[int, int]], seed: int) -> None:
    expected = [at(step) for step, _ in moved]
    got = random.Random(seed).sample([at(step + by) for step, by in moved], len(moved))
    assert same_rows(expected, got, ordered=False, roundings=16) == brute_force(expected, got, gamma(16))


def test_a_long_chain_is_paired() -> None:
    """Each row could take the next one's place: only the whole chain moved by one fits."""
    values = [(1 + step * gamma(400) * 0.6,) for step in range(300)]
    assert same_rows(values[:-1], values[1:], ordered=False, roundings=400)
