"""The planted bugs that `parity run --mutant NAME` and the tests can switch on."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from contract.errors import UserError
from contract.worker.process import Mutation

_FILE = Path(__file__).with_name("mutants.toml")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: str
    what: str
    check: str
    module: str
    find: str
    replace: str
    located: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A named bug of one stack; `check` is the cheapest one that should see it, `located` the operations that bisect must name."""

    name: str
    stack: str
    what: str
    check: str
    mutation: Mutation
    located: tuple[str, ...] = ()


@cache
def read_all() -> dict[str, Mutant]:
    """Every mutant by name."""
    entries = {name: _Entry.model_validate(table) for name, table in tomllib.loads(_FILE.read_text(encoding="utf-8")).items()}
    return {
        name: Mutant(
            name=name, stack=entry.stack, what=entry.what, check=entry.check,
            located=entry.located,
            mutation=Mutation(module=entry.module, find=entry.find, replace=entry.replace),
        )
        for name, entry in entries.items()
    }  # fmt: skip


def read(name: str) -> Mutant:
    """One mutant.

    Raises:
        UserError: there is none of that name.
    """
    if name not in read_all():
        raise UserError(f"there is no mutant {name!r}; allowed: {', '.join(read_all())}")
    return read_all()[name]
