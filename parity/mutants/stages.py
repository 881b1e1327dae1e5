"""What a mutant is asked, and in which order: the check that should see it first, then the others, cheapest tier first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from parity.checks import registry
from parity.mutants.catalogue import CONTRACT
from parity.mutants.facts import Askable

UNTIL = ("own", "killed", "every")
"""How far a mutant is asked: its own check; the others too until one kills it; all of them."""

BUNDLED = ("A", "B")
"""Tiers whose checks take less time than a process takes to start: one process asks several of them."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process: checks, and the stacks that run; none: all that `parity run` would start."""

    checks: tuple[str, ...]
    stacks: tuple[str, ...]


def stages(mutant: Askable, until: str) -> Iterator[Stage]:
    """In the order in which they are asked.

    The stacks that a mutant changes are asked alone first: most checks hold a stack against the reference. What then has not killed it is
    asked of all stacks, where one is held against the other too.
    """
    alone = () if CONTRACT in mutant.stacks else tuple(mutant.stacks)
    yield Stage(checks=(mutant.check,), stacks=alone)
    if until == "own":
        return
    others = tuple(check.id for check in registry.CHECKS if check.id != mutant.check)
    if until == "killed" and alone:
        yield from _by_tier(others, alone)
    yield from _by_tier((mutant.check, *others) if alone else others, ())


def _by_tier(checks: Sequence[str], stacks: tuple[str, ...]) -> Iterator[Stage]:
    tier = {check.id: check.tier for check in registry.CHECKS}
    for name in registry.TIERS:
        if mine := tuple(check for check in checks if tier[check] == name):
            yield Stage(checks=mine, stacks=stacks)


def clean(wanted: Iterable[Stage]) -> list[Stage]:
    """The runs without a mutant that cover these stages: of the cheap tiers one a set of stacks, of the others one a check.

    What takes longest begins first, so that no process is left alone at the end.
    """
    bundles: dict[tuple[tuple[str, ...], str], list[str]] = {}
    single: dict[Stage, None] = {}
    for stage in wanted:
        for check in stage.checks:
            if check[:1].upper() in BUNDLED:
                of = bundles.setdefault((stage.stacks, check[:1]), [])
                of += [check] if check not in of else []
            else:
                single[Stage(checks=(check,), stacks=stage.stacks)] = None
    ordered = sorted(single, key=lambda stage: stage.checks, reverse=True)
    return [*ordered, *(Stage(checks=tuple(sorted(checks)), stacks=stacks) for (stacks, _), checks in bundles.items())]
