"""What can come of a request: an answer, the stack's own error, or a failure of the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract.worker.operation import expected_answer
from contract.worker.operations import OPERATIONS


class HarnessError(Exception):
    """The worker died, hung, or broke the protocol: no statement about its arithmetic."""


class WorkerDied(HarnessError):
    """The worker's process ended."""


class WorkerHung(HarnessError):
    """The worker did not answer in time, and was killed."""


class ProtocolBroken(HarnessError):
    """The worker answered something that is no answer."""


class RequestFailed(Exception):
    """The stack answered with an error; the worker lives on."""

    def __init__(self, stack: str, error_class: str, message: str, trace: str) -> None:
        super().__init__(f"{stack}: {error_class}: {message}")
        self.error_class, self.message, self.trace = error_class, message, trace


@dataclass(frozen=True)
class Answer:
    """What a worker answered, and when it was busy with it (monotonic clock, nanoseconds)."""

    values: dict[str, Any]
    tensors: dict[str, np.ndarray]
    busy_ns: tuple[int, int] = (0, 0)


def check_answer(
    stack: str, op: str, attrs: Mapping[str, Any], tensors: Mapping[str, np.ndarray], answered: Mapping[str, np.ndarray]
) -> None:
    """Holds an answer against the operation's table.

    Raises:
        ProtocolBroken: a tensor is missing, extra, of the wrong shape or dtype.
    """
    expected = expected_answer(OPERATIONS[op], attrs, tensors)
    got = {name: (tensor.shape, tensor.dtype.name) for name, tensor in answered.items()}
    for name in sorted(set(expected) | set(got)):
        if got.get(name) != expected.get(name):
            raise ProtocolBroken(
                f"{stack}: broke the protocol: {op} answered {name} as {_spell(got.get(name))}, must be {_spell(expected.get(name))}"
            )


def _spell(tensor: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if tensor is None else f"{tensor[1]}{list(tensor[0])}"
