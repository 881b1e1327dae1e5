"""A worker's process and its two pipes: writes that time out, a thread that reads frames, one way to end it all."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from contract.worker import wire

Frame = tuple[dict[str, Any], dict[str, np.ndarray]]


class WorkerPipe:
    """A running process whose standard input and output carry frames, and whose standard error goes to a file.

    Raises:
        OSError: the command can't be started.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with open(log, "wb") as stderr:
            # A session of its own: Ctrl-C reaches the launcher alone, and kill() reaches the worker's children too.
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True, bufsize=2**20
            )
        os.set_blocking(self._input.fileno(), False)
        self.frames: queue.Queue[Frame | Exception] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    @property
    def _input(self) -> BinaryIO:
        return cast(BinaryIO, self._popen.stdin)

    def write(self, parts: Sequence[bytes], seconds: float) -> None:
        """Writes bytes to the worker.

        Raises:
            TimeoutError: not one byte was taken for `seconds`.
            OSError: the worker is gone.
        """
        number = self._input.fileno()
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        for part in parts:
            left = memoryview(part)
            while left:
                try:
                    left = left[os.write(number, left) :]
                except BlockingIOError:
                    if not poll.poll(seconds * 1000):
                        raise TimeoutError from None

    def exit_code(self, seconds: float) -> int | None:
        """The exit code once the process has ended (negative: the signal that ended it), None where it lives on."""
        try:
            return self._popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def how_it_ended(self, seconds: float) -> str:
        """In words, of a process that no longer answers."""
        code = self.exit_code(seconds)
        if code is None:
            return "closed its pipe"
        return f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal(-code)}"

    def kill(self) -> None:
        """Ends the process and its children at once, and waits for it."""
        # macOS answers PermissionError for a group of which only a zombie is left
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        with contextlib.suppress(OSError):
            self._input.close()

    def _read(self) -> None:
        """Queues every frame, then why there are no more. Closes the pipe itself, since nobody else may while it reads."""
        with cast(BinaryIO, self._popen.stdout) as pipe:
            try:
                while True:
                    self.frames.put(wire.receive(pipe))
            except Exception as error:
                self.frames.put(error)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
