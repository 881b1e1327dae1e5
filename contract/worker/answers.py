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


class NotAnAnswer(ValueError):
    """A frame that the protocol does not have; the message says what of it."""


def answer_of(header: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Answer:
    """What a frame with status `ok` answers. Raises: NotAnAnswer."""
    values, busy = header.get("values", {}), header.get("busy_ns", [0, 0])
    if not isinstance(values, dict):
        raise NotAnAnswer(f"answered values that are a {type(values).__name__}, must be an object")
    if not (isinstance(busy, list) and len(busy) == 2 and all(isinstance(time, int) for time in busy)):
        raise NotAnAnswer(f"answered busy_ns {busy!r}, must be two integers")
    return Answer(values, tensors, (busy[0], busy[1]))


def progress_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a frame with status `progress`. Raises: NotAnAnswer."""
    values = header.get("values")
    if not isinstance(values, dict):
        raise NotAnAnswer(f"sent progress that is a {type(values).__name__}, must be an object")
    return values


def failure_of(stack: str, header: Mapping[str, Any]) -> RequestFailed:
    """What a frame with status `error` says. Raises: NotAnAnswer."""
    error = header.get("error")
    if not isinstance(error, dict) or not {"class", "message", "traceback"} <= set(error):
        raise NotAnAnswer("answered an error without class, message and traceback")
    return RequestFailed(stack, *(_printable(str(error[part])) for part in ("class", "message", "traceback")))


def _printable(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 can't, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
