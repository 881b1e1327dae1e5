"""The near end of a program's three pipes: messages to it, messages from it, what it prints."""

from __future__ import annotations

import json
import math
import os
import select
import time
from typing import Any, NoReturn

from parity.scorecard.sandbox.limits import Limits

KEPT = 4096
"""Bytes of what a program prints that are kept."""
CHUNK = 2**16


class Ended(Exception):
    """A program gives no more answers: it ended, its time is over, or it went over a limit. The message says which."""


class EndOfAnswers(Ended):
    """Its pipe is closed: it ended, most likely."""

    def __init__(self) -> None:
        super().__init__("it ended, or closed its pipe, before it answered")


class Peer:
    """Messages are JSON objects, one a line. Nothing here trusts them.

    Args:
        requests, answers, printed: file descriptors, which this owns from now on.
        deadline: of time.monotonic(), seconds.
    """

    def __init__(self, requests: int, answers: int, printed: int, *, limits: Limits, deadline: float) -> None:
        self._requests, self._answers, self._printed = requests, answers, printed
        self._limits, self.deadline = limits, deadline
        self._held = bytearray()
        self._printed_bytes, self._printed_open = 0, True
        self.kept = b""
        for number in (requests, answers, printed):
            os.set_blocking(number, False)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message.

        Raises:
            Ended: it has gone, or its time is over before it took all of it.
        """
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:
            self._wait([], [self._requests])
            try:
                left = left[os.write(self._requests, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise EndOfAnswers from error

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Ended: it has gone, its time is over, it went over a limit, or said what is no message.
        """
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > self._limits.message_bytes:
                self._too_large()
            self._read()
        if end > self._limits.message_bytes:
            self._too_large()
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return _parsed(line)

    def forget_printed(self) -> None:
        """Begins to count anew what it prints."""
        self._printed_bytes = 0

    def close(self) -> None:
        """Closes the pipes."""
        for number in (self._requests, self._answers, self._printed):
            os.close(number)

    def _read(self) -> None:
        ready = self._wait([self._answers, self._printed] if self._printed_open else [self._answers], [])
        if self._printed in ready:
            self._drain()
        if self._answers in ready:
            chunk = os.read(self._answers, CHUNK)
            if not chunk:
                raise EndOfAnswers
            self._held += chunk

    def _drain(self) -> None:
        chunk = os.read(self._printed, CHUNK)
        self._printed_open = bool(chunk)
        self._printed_bytes += len(chunk)
        self.kept += chunk[: KEPT - len(self.kept)]
        if self._printed_bytes > self._limits.printed_bytes:
            raise Ended(f"it printed more than {self._limits.printed_bytes:,} bytes")

    def _wait(self, reading: list[int], writing: list[int]) -> list[int]:
        poll = select.poll()  # select() takes no descriptor over 1,023
        for number in reading:
            poll.register(number, select.POLLIN)
        for number in writing:
            poll.register(number, select.POLLOUT)
        left = self.deadline - time.monotonic()
        ready = poll.poll(max(0.0, left) * 1000)
        if left <= 0 or not ready:
            raise Ended(f"it didn't end within {self._limits.seconds:g} s")
        return [number for number, _ in ready]

    def _too_large(self) -> NoReturn:
        raise Ended(f"it returned more than {self._limits.message_bytes:,} bytes of JSON")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Ended("it wrote on its pipe what is no message") from error
    if not isinstance(message, dict):
        raise Ended("it wrote on its pipe what is no message")
    return message


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(digits)
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
