"""A run's checks, asked of several sets of the same stacks at once: the slowest stack computes on one core."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Callable, Sequence

import psutil

from parity.cells import Cell
from parity.checks import graph
from parity.checks.check import Check
from parity.engine import Engine
from parity.report.record import CheckTiming, Result

MOST = 4
"""Sets, unless told: with more, the few checks of whole checkpoints are what a run waits for."""
SET_BYTES = 3 * 2**30
"""What both stacks and the reference hold of SmolLM2 in float64, the largest model that a run has unless told."""


def usual() -> int:
    """How many sets this machine has cores and memory for."""
    return max(1, min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _room()))


def _room() -> int:
    return int(psutil.virtual_memory().available) // SET_BYTES


def groups(checks: Sequence[Check]) -> list[list[Check]]:
    """What one set is asked in turn: the checks of a real checkpoint, of which two at once take too much memory; then those of each
    architecture, which share what is compiled; then each of the others. The first groups take longest."""
    of_model = [check for check in checks if check.id in graph.OF_A_MODEL]
    by_architecture: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        if check not in of_model and check.tier == "C":
            by_architecture.setdefault(tuple(sorted(check.model_types)), []).append(check)
    others = [[check] for check in reversed(checks) if check not in of_model and check.tier != "C"]
    largest = sorted(by_architecture.values(), key=len, reverse=True)
    return [group for group in (of_model, *largest, *others) if group]


def ask(engines: Sequence[Engine], checks: Sequence[Check], cells: Sequence[Cell], doing: Callable[[str], None]) -> list[Result]:
    """Every check of one of the engines, the next group of the first that is free; the results in the order of the checks."""
    waiting: queue.SimpleQueue[list[Check]] = queue.SimpleQueue()
    for group in groups(checks) if len(engines) > 1 else [list(checks)]:
        waiting.put(group)
    results: dict[str, list[Result]] = {}
    failed: list[BaseException] = []

    def work(engine: Engine) -> None:
        try:
            while not failed:
                for check in waiting.get_nowait():
                    doing(f"{check.id}: {check.title}")
                    results[check.id] = engine.run(check, [cell for cell in cells if cell.check is check and cell.plan is not None])
        except queue.Empty:
            return
        except BaseException as error:
            failed.append(error)

    # daemons, so that a run that is interrupted ends at once
    others = [threading.Thread(target=work, args=(engine,), name="job", daemon=True) for engine in engines[1:]]
    for thread in others:
        thread.start()
    work(engines[0])
    for thread in others if not failed else ():
        thread.join()
    if failed:
        raise failed[0]
    return list(itertools.chain.from_iterable(results[check.id] for check in checks))


def busy(engines: Sequence[Engine]) -> dict[str, list[tuple[int, int]]]:
    """When any worker of a stack was busy, by stack."""
    names = dict.fromkeys(name for engine in engines for name in engine.meter.busy)
    return {name: [interval for engine in engines for interval in engine.meter.busy.get(name, [])] for name in names}


def timings(engines: Sequence[Engine]) -> dict[str, CheckTiming]:
    """Where the time of each check went."""
    return {name: timing for engine in engines for name, timing in engine.meter.checks.items()}
