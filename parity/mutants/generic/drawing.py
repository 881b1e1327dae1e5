"""Which mutants are asked: drawn by a seed, the same number of each file as far as it has places.

A file's mutants are ranked by a hash of the seed and of the change itself, so that they stay the same when another file changes, and
when lines are added to this one. The kinds of change take turns, in an order that is each file's own: some stand at ten times as many
places as others.
"""

from __future__ import annotations

import ast
import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from contract.errors import UserError
from parity.mutants import keys
from parity.mutants.generic import operators
from parity.mutants.generic.place import Change, Place, place

STACKS = ("tinygrad_lora", "torch_qlora")
"""Those that the project brings; a witness stands for code that is not ours."""


@cache
def left_out() -> Mapping[str, str]:
    """Module -> why no mutant of it is drawn."""
    tables = tomllib.loads(Path(__file__).with_name("scope.toml").read_text(encoding="utf-8"))
    return {f"stacks.{name}": str(why) for name, why in tables["out"].items()}


def sources() -> dict[str, str]:
    """Every module of the stacks that mutants are drawn from: name -> source.

    Raises:
        UserError: a module that is left out is not there.
    """
    found = {}
    for stack in STACKS:
        for path in sorted((keys.ROOT / "stacks" / stack).rglob("*.py")):
            parts = path.relative_to(keys.ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    if stale := sorted(left_out().keys() - found.keys()):
        raise UserError(f"parity/mutants/generic/scope.toml leaves out {', '.join(stale)}, which is no module of the stacks; drop it there")
    return {module: source for module, source in found.items() if module not in left_out()}


def draw(modules: Mapping[str, str], least: int, seed: int) -> list[Place]:
    """At least `least` mutants, or all that there are: of each module the same number, or as many as it has."""
    ranked = {module: _Ranked(module, source, seed) for module, source in sorted(modules.items())}
    each = 0
    while sum(len(one.first(each)) for one in ranked.values()) < least and any(one.has_more(each) for one in ranked.values()):
        each += 1
    return [place for one in ranked.values() for place in one.first(each)]


class _Ranked:
    """A module's mutants in the order in which they are drawn, made as far as they are asked for."""

    def __init__(self, module: str, source: str, seed: int) -> None:
        self._made: list[Place] = []
        self._rest = self._places(module, source, seed)

    def first(self, count: int) -> list[Place]:
        while len(self._made) < count and (one := next(self._rest, None)) is not None:
            self._made.append(one)
        return self._made[:count]

    def has_more(self, count: int) -> bool:
        return len(self.first(count + 1)) > count

    def _places(self, module: str, source: str, seed: int) -> Iterator[Place]:
        taken: set[int] = set()
        for operator, change in _in_turn(operators.changes(ast.parse(source)), f"{seed} {module}"):
            found = place(module, source, operator, change)
            if found is not None and found.line not in taken:  # a line that holds much is drawn once before others are drawn twice
                taken.add(found.line)
                yield found


def _in_turn(changes: Iterable[tuple[str, Change]], salt: str) -> Iterator[tuple[str, Change]]:
    """Each kind's changes by their hash; one of each kind in turn."""
    kinds: dict[str, list[tuple[str, Change]]] = {}
    for operator, change in changes:
        key = _hash(salt, operator, ast.unparse(change.node), change.source)
        kinds.setdefault(operator, []).append((key, change))
    queues = {kind: sorted(kinds[kind], key=lambda one: one[0]) for kind in sorted(kinds, key=lambda kind: _hash(salt, kind))}
    for turn in range(max(map(len, queues.values()), default=0)):
        for kind, queue in queues.items():
            if turn < len(queue):
                yield kind, queue[turn][1]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
