"""How many examples each profile draws."""

from __future__ import annotations

import dataclasses

import pytest

from contract.model.layout import MODEL_TYPES
from parity.checks import registry
from parity.profiles import IN_FULL, PROFILES, Profile

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


def test_what_is_left_to_nightly_is_drawn_there_alone() -> None:
    check = dataclasses.replace(CHEAP, nightly=True, fixed_count=4)
    asked = {name: (profile.asks(check), profile.drawn(check) > 0, profile.fixed(check)) for name, profile in PROFILES.items()}
    assert asked == {"quick": (False, False, 0), "ci": (False, False, 0), "nightly": (True, True, 4)}


def test_two_architectures_are_asked_in_full_and_the_others_at_one_example() -> None:
    """A night asks all in full."""
    checks = {check.id: check for check in registry.CHECKS}
    for model_type in MODEL_TYPES:
        for name in (f"c.{model_type}", f"c.{model_type}_options", f"c.{model_type}_packed", f"c.law_{model_type}"):
            check = checks[name]
            assert check.model_types == {model_type}
            asked = {profile: PROFILES[profile].fixed(check) + PROFILES[profile].drawn(check) for profile in PROFILES}
            assert (asked["ci"] > 1) == (model_type in IN_FULL)
            assert asked["quick"] >= 1
            assert asked["nightly"] >= 500


def test_a_check_of_several_architectures_is_asked_in_full() -> None:
    """One of them is among the two."""
    check = next(check for check in registry.CHECKS if check.id == "c.packed_fused_attention")
    assert check.model_types > {"gpt2"}
    assert PROFILES["ci"].fixed(check) == check.fixed_count > 1


def test_every_check_is_asked_something_unless_it_is_left_to_nightly() -> None:
    for check in registry.CHECKS:
        for profile in PROFILES.values():
            assert (profile.fixed(check) + profile.drawn(check) > 0) == profile.asks(check), check.id
