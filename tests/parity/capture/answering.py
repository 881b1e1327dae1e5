"""Stacks in NumPy in this process, in place of workers; a device spoils one operation, and the probe says what a test wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from contract.worker.answers import Answer, HarnessError
from contract.worker.discover import StackInfo
from tests.parity.numpy_stack import SPOILT, Arrays, Done, InProcess

Chosen = Mapping[str, tuple[StackInfo, str]]
Probe = Mapping[str, Any]


class Answering(InProcess):
    """A stack whose worker ends in every request after the first, on the device DIES."""

    def __init__(self, name: str, device: str, spoil: Callable[[Arrays], Arrays] | None, probe: Probe, only: str) -> None:
        super().__init__(name, SPOILT["CPU" if device == "DIES" else device] if spoil is None else spoil, only)
        self._device, self._probe = device, probe

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Done:
        """As InProcess.submit."""
        if self._device == "DIES" and self.asked:
            return Done(HarnessError(f"{self.name}: the worker ended with exit code 7"))
        done = super().submit(request, values, tensors)
        if isinstance(done.answer, Answer):  # by name, as tensors come over the wire
            done = Done(dataclasses.replace(done.answer, tensors=dict(sorted(done.answer.tensors.items()))))
        return done

    def request(self, request: str) -> Answer:
        """What `probe` answers."""
        assert request == "probe"
        return Answer({"dtypes": ["float32", "float64"], **self._probe}, {})


def sets(
    spoilt: Mapping[str, Callable[[Arrays], Arrays]] | None = None, probes: Mapping[str, Probe] | None = None, *, only: str = "matmul"
) -> Callable[..., Any]:
    """What takes the place of `workers.sets`.

    Args:
        spoilt: a command's first word -> what becomes of the answers to the operation `only`.
        probes: a command's first word -> more of what the probe says.
    """

    @contextmanager
    def start(count: int, chosen: Chosen, mutants: Sequence[str] = (), *, own_run: bool = False) -> Iterator[list[dict[str, Answering]]]:
        yield [
            {
                name: Answering(name, device, (spoilt or {}).get(info.command[0]), (probes or {}).get(info.command[0], {}), only)
                for name, (info, device) in chosen.items()
            }
            for _ in range(count)
        ]

    return start
