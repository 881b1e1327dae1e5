"""How many examples each profile draws."""

from __future__ import annotations

import dataclasses

import pytest

from parity.checks import registry
from parity.profiles import PROFILES, Profile

CHEAP = next(check for check in registry.CHECKS if check.id == "a.matmul")


@pytest.mark.parametrize(("cost", "most", "drawn"), [(1, None, 60), (7, None, 8), (100, None, 1), (1, 5, 5), (30, 5, 2)])
def test_a_costly_check_draws_fewer(cost: int, most: int | None, drawn: int) -> None:
    assert Profile(examples=60).drawn(dataclasses.replace(CHEAP, cost=cost, most=most)) == drawn


def test_of_fixed_cases_nothing_is_drawn() -> None:
    assert Profile(examples=60).drawn(dataclasses.replace(CHEAP, cases=None)) == 0


def test_the_shortest_profile_asks_the_first_few_fixed_cases() -> None:
    check = dataclasses.replace(CHEAP, cases=None, fixed_count=20, few=6)
    assert {name: profile.fixed(check) for name, profile in PROFILES.items()} == {"quick": 6, "ci": 20, "nightly": 20}
    assert {profile.fixed(dataclasses.replace(check, few=None)) for profile in PROFILES.values()} == {20}


def test_a_night_draws_ten_thousand_of_each_but_graphs() -> None:
    drawn = {check.id: PROFILES["nightly"].drawn(check) for check in registry.CHECKS if check.cases is not None}
    assert {count for check_id, count in drawn.items() if not check_id.startswith("c.")} == {10_000}
    assert {count for check_id, count in drawn.items() if check_id.startswith("c.")} == {500}
