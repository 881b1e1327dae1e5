"""Has a stack answer a unit, and reads what two stacks answered to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.worker.answers import Answer
from contract.worker.process import StackProcess
from parity.capture import store
from parity.capture.recording import RecordingSource
from parity.capture.store import Outcome
from parity.capture.take import cells_of
from parity.cells import Device
from parity.checks.check import Check
from parity.engine import Engine
from parity.profiles import FIXED_SEED, PROFILES

PROFILE = "quick"
"""How much is asked: what the gate asks of a mutant."""


def take(check: Check, device: Device, process: StackProcess, folder: Path) -> None:
    """Writes what a stack answers to a check's requests; what an interrupted one has written is not asked again.

    A stack that lacks what the check needs is asked nothing.
    """
    name = device.info.name
    cells = cells_of(check, device)
    engine = Engine(
        {name: process}, {name: device.info.capabilities}, profile=PROFILES[PROFILE], seed=FIXED_SEED, rerun="", statistical=0,
        sources={name: RecordingSource(folder, process)},
    )  # fmt: skip
    if cells:
        engine.run(check, cells)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request of one example, and what came of it on two stacks."""

    example: int
    request: int
    case: str
    first: Outcome
    second: Outcome

    @property
    def answers(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None:
        """Both answers, where both answered."""
        if isinstance(self.first, Answer) and isinstance(self.second, Answer):
            return self.first.tensors, self.second.tensors
        return None


def both(check: Check, first: tuple[Path, str], second: tuple[Path, str]) -> Iterator[Asked]:
    """What two stacks, each (folder, name), answered alike often: of requests that only one was asked nothing is said.

    Raises:
        ValueError: they were asked of other inputs.
    """
    for path in sorted((first[0] / check.id).glob("*.safetensors")):
        number = int(path.stem)
        one, other = (store.read_example(store.path_of(folder, check.id, number), stack) for folder, stack in (first, second))
        if one is None or other is None:
            continue
        if one.digest != other.digest:
            raise ValueError(f"example {number} of {check.id} was another input for {second[1]} than for {first[1]}")
        for request in sorted(one.outcomes.keys() & other.outcomes.keys()):
            yield Asked(example=number, request=request, case=one.case, first=one.outcomes[request], second=other.outcomes[request])
