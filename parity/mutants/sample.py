"""Which mutants a sample has: a fixed choice, spread over tiers, stacks and areas, of checks that are cheap to ask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from parity.checks import registry
from parity.mutants.catalogue import Bug, Mutant

SIZE = 20
SEED = "20230523"
DEAR = ("c", "d", "e")
MOST_DEAR = 2
"""Of each tier that asks graphs, runs or files: a process of some ten seconds each."""


def choose(mutants: Sequence[Mutant], bugs: Mapping[str, Bug]) -> list[Mutant]:
    """About SIZE of them, in the order of the catalogue; the same ones as long as the catalogue stays.

    In turn, tier by tier, the next mutant of that tier whose stacks and area were taken least so far; among equals a digest of its name
    decides, so that a mutant that comes or goes changes little.
    """
    left = {tier: [one for one in mutants if _tier(one) == tier] for tier in sorted(tier.lower() for tier in registry.TIERS)}
    chosen: list[Mutant] = []
    while len(chosen) < SIZE:
        before = len(chosen)
        for tier, rest in left.items():
            full = tier in DEAR and sum(_tier(one) == tier for one in chosen) >= MOST_DEAR
            if rest and not full and len(chosen) < SIZE:
                best = min(rest, key=lambda one: _order(one, chosen, bugs))
                rest.remove(best)
                chosen.append(best)
        if len(chosen) == before:
            break
    return [one for one in mutants if one in chosen]


def _order(mutant: Mutant, chosen: Sequence[Mutant], bugs: Mapping[str, Bug]) -> tuple[int, int, int, str]:
    """Least first: whose checks, stacks and area are rarest among the chosen."""
    checks = sum(one.check == mutant.check for one in chosen)
    stacks = sum(one.stacks == mutant.stacks for one in chosen if _tier(one) == _tier(mutant))
    areas = sum(_area(one, bugs) == _area(mutant, bugs) for one in chosen)
    return checks, stacks, areas, hashlib.sha256(f"{SEED} {mutant.name}".encode()).hexdigest()


def _area(mutant: Mutant, bugs: Mapping[str, Bug]) -> str:
    return bugs[mutant.bug].area if mutant.bug else ""


def _tier(mutant: Mutant) -> str:
    return mutant.check[:1]
