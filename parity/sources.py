"""Where answers come from: a stack that runs, or a capture of what one answered elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from contract.worker.answers import Answer, HarnessError, RequestFailed
from contract.worker.process import StackProcess
from parity.checks.check import Ask, Awaited, Case, Check

SHRINKING = -1
"""The number of an example that is no example of the run: one that a failure is shrunk by."""


class NotRecorded(Exception):
    """A source has no answer to that request, and none can be had; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One input of a check; number: fixed cases first, from 0, then drawn ones, in order."""

    check_id: str
    number: int
    case: Case


class Source(Protocol):
    """What answers a stack's requests."""

    def ask(self, example: Example, ordinal: int, request: Ask) -> Awaited:
        """Asks one request of an example.

        Args:
            ordinal: the request's number among all that the check's plans ask of this case (`ordinals`).

        Raises:
            HarnessError, RequestFailed: as Ask.send.
            NotRecorded: there is no such answer.
        """

    def done(self, example: Example) -> None:
        """Told when all that was asked of an example has been answered, or will never be."""


@dataclass(frozen=True)
class LiveSource:
    """A stack that runs."""

    process: StackProcess

    def ask(self, example: Example, ordinal: int, request: Ask) -> Awaited:
        """Sends the request."""
        return request.send(self.process)

    def done(self, example: Example) -> None:
        """Keeps nothing."""


@dataclass(frozen=True)
class Given:
    """An answer that is there already, or the error that came in its place (an Awaited)."""

    answer: Answer | HarnessError | RequestFailed

    def result(self) -> Answer:
        """As Pending.result."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def live(processes: Mapping[str, StackProcess]) -> dict[str, Source]:
    """Each stack as a source."""
    return {name: LiveSource(process) for name, process in processes.items()}


def ordinals(check: Check, case: Case) -> dict[tuple[object, ...], int]:
    """Each request of any of the check's plans on a case, by its key: its number, whichever of the plans are asked."""
    keys = (request.key() for plan in check.plans for request in plan.requests(case))
    return {key: number for number, key in enumerate(dict.fromkeys(keys))}
