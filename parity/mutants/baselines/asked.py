"""`python -m parity.mutants.baselines.asked FILE`: the process of one step of a measurement. It ends when its standard input closes."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from contract.errors import UserError
from contract.worker.answers import HarnessError
from contract.worker.files import replacing
from parity.mutants import child, planting

FAILED = 1
"""Its exit code where one line on standard error says why nothing came of it."""


class Step(BaseModel):
    """What to ask.

    home:    holds clean/STACK/CHECK/NUMBER.safetensors, and what else the measurement keeps.
    stacks:  those to ask, all with the mutant; without one, as they are.
    check:   of which the units are asked.
    only:    of them those of these ids; none named: all.
    mutant:  planted in the stacks and, where it is of the contract, here too; "" none.
    pair:    the two stacks whose answers are compared, the one with the bug first.
    seen:    the file that the verdict goes to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    stacks: tuple[str, ...]
    check: str
    only: tuple[str, ...] = ()
    mutant: str = ""
    pair: tuple[str, str] = ("", "")
    seen: Path | None = None


def main() -> int:
    """Does what the file says."""
    step = Step.model_validate_json(Path(sys.argv[1]).read_bytes())
    child.end_with_the_campaign()
    try:
        if step.mutant:
            _planted(step)
        else:
            _clean(step)
    except (UserError, HarnessError, ValueError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


def whole(home: Path, stack: str, unit: str) -> Path:
    """The file that says that a stack's answers to a unit are whole."""
    return home / "clean" / stack / f"{unit}.whole"


def _clean(step: Step) -> None:
    from parity.mutants.baselines.measuring import take_units

    (stack,) = step.stacks
    for unit in take_units(step.check, step.only, (stack,), {stack: step.home / "clean" / stack}, ""):
        with replacing(whole(step.home, stack, unit)) as file:
            file.write(b"")


def _planted(step: Step) -> None:
    planting.plant([step.mutant])  # what it changes of the contract, before anything has taken a function of it
    importlib.import_module(planting.__name__).PLANTED.append(step.mutant)
    from parity.mutants.baselines import measuring

    assert step.seen is not None
    folder = step.seen.with_suffix("")
    try:
        folders = {stack: folder / stack if stack in step.stacks else step.home / "clean" / stack for stack in step.pair}
        taken = list(measuring.take_units(step.check, (), step.stacks, folders, step.mutant))
        found = measuring.judge(step.mutant, step.check, taken, step.pair, folders, step.home / "clean")
        with replacing(step.seen) as file:
            file.write(found.model_dump_json().encode())
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    raise SystemExit(main())
