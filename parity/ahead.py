"""What of judging needs no answer, done beside the stacks: the reference of a graph takes as long as a stack does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from contract.worker.capabilities import Capabilities
from parity.busy import Meter
from parity.cells import Cell
from parity.checks.check import Case

Wait = Callable[[], None]


def begin(case: Case, cells: Sequence[Cell], capabilities: Mapping[str, Capabilities], meter: Meter) -> Wait | None:
    """Begins what the cells' plans have to do ahead, in a thread of its own; answers how to wait for it, or None: there is nothing.

    Every stack's declared errors are taken together, so that what is made serves all cells. What goes wrong is left to judging, which
    meets it again and says so.
    """
    works = list(dict.fromkeys(cell.plan.ahead for cell in cells if cell.plan is not None and cell.plan.ahead is not None))
    if not works:
        return None
    on = dict.fromkeys(pair for cell in cells for pair in zip(cell.stacks, cell.devices, strict=True))
    declared = [one for stack, device in on for one in capabilities[stack].elementary_on(device)]

    def work() -> None:
        with contextlib.suppress(Exception), meter.judging(), np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for one in works:
                one(case, declared)

    # a daemon, so that a run that is interrupted ends at once
    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    return thread.join
