"""The sample: fixed, small, and of every tier, both stacks and many areas."""

from __future__ import annotations

from collections import Counter

from parity.checks import registry
from parity.mutants import catalogue, sample

EVERY = list(catalogue.read_all().values())
CHOSEN = sample.choose(EVERY, catalogue.bugs())


def tiers() -> Counter[str]:
    return Counter(one.check[:1].upper() for one in CHOSEN)


def test_it_is_of_every_tier_and_of_both_stacks() -> None:
    assert set(tiers()) == set(registry.TIERS)
    assert {"torch_qlora", "tinygrad_lora"} <= {stack for one in CHOSEN for stack in one.stacks}


def test_it_is_small_and_mostly_cheap() -> None:
    assert sample.SIZE / 2 < len(CHOSEN) <= sample.SIZE
    assert all(tiers()[tier.upper()] <= sample.MOST_DEAR for tier in sample.DEAR)


def test_it_is_spread() -> None:
    of = Counter(one.check for one in CHOSEN)
    assert max(of.values()) <= 2
    areas = {catalogue.bugs()[one.bug].area for one in CHOSEN if one.bug}
    assert len(areas) >= min(8, len({bug.area for bug in catalogue.bugs().values() if bug.mutants}))


def test_it_is_fixed_whatever_the_order() -> None:
    assert [one.name for one in sample.choose(EVERY[::-1], catalogue.bugs())][::-1] == [one.name for one in CHOSEN]


def test_of_few_it_takes_all_but_the_dear_ones() -> None:
    few = [one for one in EVERY if one.check in ("a.matmul", "c.llama")]
    chosen = sample.choose(few, catalogue.bugs())
    assert {one.name for one in chosen} >= {one.name for one in few if one.check == "a.matmul"}
    assert sum(one.check == "c.llama" for one in chosen) == sample.MOST_DEAR
