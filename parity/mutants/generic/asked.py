"""`python -m parity.mutants.generic.asked REQUEST`: the process of one mutant, or of one check without any.

It starts the stacks once and asks check after check, the cheapest first, until one fails. Failures are neither shrunk nor located: it is
enough that the gate goes red. What each check said is written as a line at once, so that a process that hangs has told what came before.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from contract.worker import discover
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.mutation import Mutation
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity import selection, session, sources, workers
from parity.cells import Cell
from parity.checks import registry
from parity.checks.check import Check
from parity.engine import Engine
from parity.mutants import child
from parity.mutants.facts import Cell as CellFacts
from parity.mutants.facts import cell_facts
from parity.profiles import PROFILES
from parity.report.record import Status


class Planted(BaseModel):
    """A mutant: its stack, and the text of one of that stack's modules that is replaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: str
    module: str
    find: str
    replace: str


class Request(BaseModel):
    """What one process asks.

    planted:  None: the stacks as they are.
    checks:   in this order.
    traced:   a folder in which the stacks note the statements that they run; None: they don't.
    said:     the file that gets a line a check, each a Said.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    planted: Planted | None
    checks: tuple[str, ...]
    profile: str
    seed: int
    traced: Path | None = None
    said: Path


class Said(BaseModel):
    """What a check said. check: empty where the mutant kept its stack from starting, which `crash` tells of.

    alone: whether the cells are those of the changed stack by itself; else those that hold it against another.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    check: str
    alone: bool = False
    seconds: float = 0.0
    cells: tuple[CellFacts, ...] = ()
    crash: str = ""

    @property
    def stops(self) -> bool:
        """Whether nothing more needs to be asked: a cell failed, or reached no verdict."""
        return bool(self.crash) or any(cell.status in (Status.FAIL, Status.ERROR) for cell in self.cells)


def ask(request: Request) -> Iterator[Said]:
    """Asks, and says what came of each check; with a mutant, until one fails."""
    chosen = _chosen(request)
    planted = request.planted
    with _processes(chosen, planted) as processes:
        if planted is not None:
            try:
                processes[planted.stack].start()
            except (HarnessError, RequestFailed) as error:
                yield Said(check="", crash=f"{type(error).__name__}: {error}")
                return
        every = matrix.matrix(registry.CHECKS, workers.devices(chosen, processes))
        by_id = {check.id: check for check in registry.CHECKS}
        alone = (None,) if planted is None else (True, False)
        for by_itself in alone:
            for check_id in request.checks:
                check = by_id[check_id]
                cells = [cell for cell in every if cell.check is check and cell.plan is not None and _of(cell, planted, by_itself)]
                if not cells:
                    continue
                said = _said(request, check, cells, every, chosen, processes, by_itself is True)
                yield said
                if planted is not None and said.stops:
                    return


def _chosen(request: Request) -> dict[str, tuple[StackInfo, str]]:
    """Every stack and witness that is installed, on its default device; with their statements counted where that is asked for."""
    chosen = selection.select_stacks(discover.installed(), (), {}, witnesses=True)
    if request.traced is None:
        return chosen
    wrapper = "parity.mutants.generic.traced"
    return {
        name: (replace(info, command=(info.command[0], "-m", wrapper, str(request.traced), info.command[-1])), device)
        for name, (info, device) in chosen.items()
    }


@contextlib.contextmanager
def _processes(chosen: Mapping[str, tuple[StackInfo, str]], planted: Planted | None) -> Iterator[dict[str, StackProcess]]:
    """A process a stack, each started when it is first asked."""
    processes = {}
    for name, (info, device) in chosen.items():
        here = planted is not None and planted.stack == name
        mutations = [Mutation(planted.module, planted.find, planted.replace)] if planted is not None and here else []
        processes[name] = StackProcess(name, info.command, device, request_seconds=workers.REQUEST_SECONDS, mutations=mutations)
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.close()


def _of(cell: Cell, planted: Planted | None, alone: bool | None) -> bool:
    return planted is None or (planted.stack in cell.stacks and (len(cell.stacks) == 1) is alone)


def _said(
    request: Request, check: Check, cells: list[Cell], every: list[Cell], chosen: Mapping[str, tuple[StackInfo, str]],
    processes: Mapping[str, StackProcess], alone: bool,
) -> Said:  # fmt: skip
    """One check. The confidence is divided over the comparisons of a whole run, as there; no stack counts as one to bisect on."""
    began = time.monotonic()
    profile = PROFILES[request.profile]
    engine = Engine(
        {}, {name: info.capabilities for name, (info, _) in chosen.items()}, sources=sources.live(processes), profile=profile,
        seed=request.seed, rerun="", statistical=session.statistical(every, profile),
    )  # fmt: skip
    found = tuple(cell_facts(result) for result in engine.run(check, cells))
    return Said(check=check.id, alone=alone, seconds=round(time.monotonic() - began, 3), cells=found)


def main() -> None:
    """Asks what the file says."""
    request = Request.model_validate_json(Path(sys.argv[1]).read_bytes())
    child.end_with_the_campaign()
    with open(request.said, "a", encoding="utf-8") as file:
        for said in ask(request):
            file.write(said.model_dump_json() + "\n")
            file.flush()


if __name__ == "__main__":
    main()
