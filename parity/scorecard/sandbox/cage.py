"""A program in a cage: started, talked to, killed whole."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Self

from contract.errors import EnvironmentUnfit
from parity.scorecard.sandbox.launching import Method, inner_command, launch_command, process_limit, write_users
from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.sandbox.peer import Ended, EndOfAnswers, Peer

GRACE = 10.0
"""Seconds in which the kernel ends what was killed."""
STATUS_SECONDS = 1.0
"""How long a closed pipe's reason is waited for."""


class Cage:
    """One process of ours in a cage, as inside.py has it: role `answer` or `tests`.

    Args:
        role: what inside.py does.
        method: how the cage is made.
        limits: what it may use; its deadline runs from now on.

    Raises:
        EnvironmentUnfit: no such cage can be made here.
    """

    def __init__(self, role: str, *, method: Method, limits: Limits) -> None:
        self._method, self._limits = method, limits
        self._init: int | None = None
        self._control_held = b""
        self._folder = tempfile.TemporaryDirectory(prefix="cage-", ignore_cleanup_errors=True)
        deadline = time.monotonic() + limits.seconds
        requests, answers, printed = os.pipe(), os.pipe(), os.pipe()
        self._control, far = socket.socketpair()
        self.peer = Peer(requests[1], answers[0], printed[0], limits=limits, deadline=deadline)
        try:
            self._launcher = subprocess.Popen(
                launch_command(method, inner_command(role), far.fileno(), limits),
                stdin=requests[0], stdout=answers[1], stderr=printed[1], pass_fds=(far.fileno(),),
                env={}, cwd=self._folder.name, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._release()
            raise EnvironmentUnfit(f"{error.filename}: {error.strerror}") from error
        finally:
            far.close()
            for number in (requests[0], answers[1], printed[1]):
                os.close(number)

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return self._launcher.pid

    def begin(self, source: str, entry: str) -> None:
        """Waits until the cage is there, and hands in what is to run.

        Raises:
            EnvironmentUnfit: no such cage can be made here.
            Ended: it has gone.
        """
        self._handshake()
        limits = self._limits.of_a_process() | {"RLIMIT_NPROC": process_limit(self._method, self._limits)}
        self.peer.send({"limits": limits, "source": source, "entry": entry})

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Ended: there is none; how it ended, where that is known.
            EnvironmentUnfit: the cage could not be made.
        """
        try:
            return self.peer.receive()
        except EndOfAnswers as error:
            if self._method == "bubblewrap":  # whose own process a program in there may trace, and speak for
                raise
            said = self._hear(time.monotonic() + STATUS_SECONDS)
            if "failed" in said:
                raise EnvironmentUnfit(said["failed"]) from error
            if "exit-code" in said:
                raise Ended(f"it ended ({_spelled(said['exit-code'])}) before it answered") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends all that runs in there, and returns when nothing does."""
        if self._method == "none":
            self._launcher.send_signal(signal.SIGTERM)  # it kills what the program left behind
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            poll = select.poll()
            poll.register(self._init, select.POLLIN)
            poll.poll(GRACE * 1000)  # a pid namespace's first process is gone when all the others are
            os.close(self._init)
        if self._init is not None or self._method == "none":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._launcher.pid, signal.SIGKILL)
        self._launcher.wait()
        self._release()

    def _release(self) -> None:
        self.peer.close()
        self._control.close()
        self._folder.cleanup()

    def _handshake(self) -> None:
        said = self._hear(self.peer.deadline)
        if "unshared" in said:
            try:
                write_users(self._launcher.pid)
            except OSError as error:
                raise EnvironmentUnfit(f"{error.filename}: {error.strerror}") from error
            self._control.send(b"m")
            said = self._hear(self.peer.deadline)
        if "child-pid" not in said:
            raise EnvironmentUnfit(said.get("failed") or self._printed() or "the launcher ended at once")
        if self._method != "none":
            with contextlib.suppress(ProcessLookupError):  # it failed at once, and says so next
                self._init = os.pidfd_open(said["child-pid"])

    def _printed(self) -> str:
        with contextlib.suppress(Ended):
            self.peer.receive()
        lines = self.peer.kept.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _hear(self, deadline: float) -> dict[str, Any]:
        """The launcher's next line; nothing at its end or the deadline."""
        while b"\n" not in self._control_held:
            self._control.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                chunk = self._control.recv(4096)
            except (TimeoutError, ConnectionError):
                return {}
            if not chunk:
                return {}
            self._control_held += chunk
        line, _, self._control_held = self._control_held.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said


def _spelled(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    return f"killed by {signal.Signals(-status).name}" if -status in list(signal.Signals) else f"killed by signal {-status}"
