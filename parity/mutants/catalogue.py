"""The planted bugs that `parity run --mutant NAME` and `parity mutants` switch on, and the real bugs that they stand for."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from contract.errors import UserError
from contract.worker.mutation import Mutation

CONTRACT = "contract"
"""In place of a stack's name: the shared policy, planted in every process."""

PLANTED = Path(__file__).with_name("planted")
_BUGS = Path(__file__).with_name("bugs.toml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Patch(_Strict):
    """One place in one stack's source (or the contract's), and what to put there: `find` stands in the module exactly once."""

    stack: str
    module: str
    find: str = Field(min_length=1)
    replace: str


class _Entry(_Strict):
    """What every mutant says of itself."""

    what: str
    check: str
    located: tuple[str, ...] = ()
    blocks: str = ""


class _Alone(_Entry, Patch):
    """A change of one place."""


class _Several(_Entry):
    """Of several places, which make one bug together."""

    patches: tuple[Patch, ...] = Field(min_length=2)


class _Together(_Entry):
    """Several mutants at once: the same bug in each stack."""

    together: tuple[str, ...] = Field(min_length=2)


_Any = _Alone | _Several | _Together


class Bug(_Strict):
    """A real, documented bug, and what became of it here: exactly one of `mutants`, `not_applicable` and `equivalent`.

    what:           symptom and cause
    tier:           the cheapest tier that should see it
    not_applicable: no issue asks for the feature that has it
    equivalent:     nothing that can be observed would change, as `measured` shows (numbers, and the command)
    """

    id: str
    area: str
    url: str
    what: str
    tier: str
    mutants: tuple[str, ...] = ()
    not_applicable: str = ""
    equivalent: str = ""
    measured: str = ""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A named, planted bug.

    bug:     the id of the real one that it stands for, in bugs.toml
    check:   the cheapest check that should see it
    located: the operations that bisect must name, of a graph
    blocks:  the section of a graph where bisect must find it first, such as `layers.0`; "" any
    """

    name: str
    what: str
    bug: str | None
    check: str
    patches: tuple[Patch, ...]
    located: tuple[str, ...] = ()
    blocks: str = ""

    @property
    def stacks(self) -> tuple[str, ...]:
        """What it changes: stacks by name, or CONTRACT."""
        return tuple(dict.fromkeys(patch.stack for patch in self.patches))

    def changes(self, stack: str) -> bool:
        """Whether a worker of this stack computes something else with it."""
        return stack in self.stacks or CONTRACT in self.stacks

    def mutations_of(self, stack: str) -> list[Mutation]:
        """What a worker of this stack plants; of CONTRACT, what every process plants."""
        return [
            Mutation(module=patch.module, find=patch.find, replace=patch.replace)
            for patch in self.patches
            if patch.stack in (stack, CONTRACT)
        ]


@cache
def bugs() -> dict[str, Bug]:
    """Every real bug by id, in the order of the file."""
    found: dict[str, Bug] = {}
    for table in tomllib.loads(_BUGS.read_text(encoding="utf-8"))["bug"]:
        bug = Bug.model_validate(table)
        found[bug.id] = bug
    return found


@cache
def read_all() -> dict[str, Mutant]:
    """Every mutant by name."""
    of = {name: bug.id for bug in bugs().values() for name in bug.mutants}
    found: dict[str, Mutant] = {}
    for path in sorted(PLANTED.glob("*.toml")):
        found |= {mutant.name: mutant for mutant in _mutants(_tables(path), of)}
    return found


def read(name: str) -> Mutant:
    """One mutant of the catalogue, or of a file in the format of planted/*.toml: FILE.toml#NAME.

    Raises:
        UserError: there is none of that name, or the file can't be read.
    """
    if "#" in name:
        return _of_file(name)
    if name not in read_all():
        raise UserError(f"there is no mutant {name!r}; allowed: {', '.join(read_all())}, or FILE.toml#NAME")
    return read_all()[name]


def changing(names: Sequence[str], stacks: Iterable[str]) -> tuple[str, ...]:
    """Those of some mutants that change one of these stacks."""
    wanted = tuple(stacks)
    return tuple(name for name in names if any(read(name).changes(stack) for stack in wanted))


def _of_file(name: str) -> Mutant:
    file, _, wanted = name.rpartition("#")
    found = _file(Path(file).absolute())
    if wanted not in found:
        raise UserError(f"{file} holds no mutant {wanted!r}; allowed: {', '.join(found)}")
    one = found[wanted]
    return Mutant(
        name=name, what=one.what, bug=None, check=one.check, patches=one.patches, located=one.located, blocks=one.blocks,
    )  # fmt: skip


@cache
def _file(path: Path) -> dict[str, Mutant]:
    return {mutant.name: mutant for mutant in _mutants(_tables(path), {})}


def _tables(path: Path) -> dict[str, _Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, _Any]).validate_python(tables)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); name a file of mutants as FILE.toml#NAME") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is no TOML ({error}); docs/mutants.md says what a file of mutants holds") from None
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path}: {place}: {error.errors()[0]['msg']}; docs/mutants.md says what a file of mutants holds") from None


def _mutants(tables: dict[str, _Any], of: dict[str, str]) -> Iterator[Mutant]:
    for name, one in tables.items():
        yield Mutant(
            name=name, what=one.what, bug=of.get(name), check=one.check, patches=tuple(_patches(name, one, tables)), located=one.located,
            blocks=one.blocks,
        )  # fmt: skip


def _patches(name: str, one: _Any, tables: dict[str, _Any]) -> Iterator[Patch]:
    if isinstance(one, _Alone):
        yield Patch(stack=one.stack, module=one.module, find=one.find, replace=one.replace)
    elif isinstance(one, _Several):
        yield from one.patches
    else:
        for part in one.together:
            if part not in tables or isinstance(tables[part], _Together):
                raise UserError(
                    f"mutant {name}: together names {part!r}; allowed: mutants of the same file that aren't together with others"
                )
            yield from _patches(part, tables[part], tables)
