"""One step of a measurement, in its own process: stacks answer a check's units; and rules judge what a bug changed in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from contract.worker import discover
from parity import workers
from parity.mutants import catalogue
from parity.mutants.baselines import rules, seeing, taking, units
from parity.mutants.baselines.record import Seen
from parity.mutants.baselines.seeing import Found
from parity.mutants.baselines.units import Inputs, Unit


def take_units(check: str, only: Sequence[str], stacks: Sequence[str], folders: Mapping[str, Path], mutant: str) -> Iterator[str]:
    """Has each stack answer each unit of a check, into its folder; the ids of the units' checks, as they are done.

    Args:
        only: these units alone; none named: all.
        mutant: planted; "" none.
    """
    known = discover.discover()
    chosen = {stack: (known[stack], known[stack].capabilities.devices[0]) for stack in stacks}
    wanted = [unit for unit in units.units(check) if not only or unit.check.id in only]
    with workers.started(chosen, (mutant,) if mutant else ()) as processes:
        devices = workers.devices(chosen, processes)
        for unit in wanted:
            for device in devices:
                taking.take(unit.check, device, processes[device.info.name], folders[device.info.name])
            yield unit.check.id


def judge(mutant: str, check: str, taken: Sequence[str], pair: tuple[str, str], folders: Mapping[str, Path], clean: Path) -> Seen:
    """What each rule makes of a mutant.

    Args:
        taken: the units that were asked.
        pair: the stack that has the bug, and the other, which may have it too.
        folders: of what each answered with the bug, or as it is. clean: of what all answered as they are.
    """
    one = catalogue.read(mutant)
    of: dict[Inputs, list[tuple[dict[str, Found], dict[str, Found]]]] = {"hard": [], "ordinary": []}
    for unit in units.units(check):
        if unit.check.id in taken:
            of[unit.inputs].append((found(unit, pair, folders), found(unit, pair, {stack: clean / stack for stack in pair})))
    sights = {inputs: {rule.name: seeing.sight(rule.name, every) for rule in rules.EVERY} for inputs, every in of.items()}
    bug = catalogue.bugs().get(one.bug or "")
    return Seen(
        name=one.name, what=one.what, bug=one.bug or "", area="" if bug is None else bug.area, check=check, stacks=one.stacks,
        hard=sights["hard"], ordinary=sights["ordinary"],
    )  # fmt: skip


def found(unit: Unit, pair: tuple[str, str], folders: Mapping[str, Path]) -> dict[str, Found]:
    """Where each rule fails, the first stack's answers against the second's."""
    first, second = ((folders[stack], stack) for stack in pair)
    return seeing.found(unit, taking.both(unit.check, first, second))
