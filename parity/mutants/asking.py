"""One asking: a process that runs some checks with a planted bug, ended whole at its deadline or when the campaign stops."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ValidationError

from parity.mutants.asked import REFUSED, Request
from parity.mutants.facts import Ended, Facts, of_run
from parity.report.record import Run

TICK_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""For a process to end its workers, before all are killed."""

LOG_CHARACTERS = 400

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUM_CPU_THREADS"), "1")
"""Campaigns run a process a core: threads of OpenMP, OpenBLAS, MKL and tinygrad would only wait for each other."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Stopped(Exception):
    """The campaign was told to end while this was asked."""


@dataclass
class _Tree:
    """A process and all that it started, which workers' own sessions hide from a process group."""

    popen: subprocess.Popen[bytes]

    def __post_init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}
        self.look()

    def look(self) -> None:
        """Notes who belongs to it now: the children of one that has died have another parent."""
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(self.popen.pid).children(recursive=True):
                self._known.setdefault(one.pid, one)

    def end(self) -> None:
        """Asks the process to end where it has not; kills what is left of it and of all that were seen to belong to it."""
        if self.popen.poll() is None:
            self.look()
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(GRACE_SECONDS)
        self.popen.kill()
        for one in self._known.values():
            with contextlib.suppress(psutil.Error):  # psutil holds the time of creation against another process of that number
                one.kill()
        self.popen.wait()
        psutil.wait_procs(list(self._known.values()), timeout=GRACE_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Child:
    """How a process ended: in time or not, its exit code (negative: the signal), after how long, and the last line of its log."""

    in_time: bool
    code: int
    seconds: float
    last_line: str


def run(module: str, file: Path, folder: Path, *, deadline: float, stop: threading.Event) -> Child:
    """Runs `python -m MODULE FILE` with a thread a process and its standard input open; when it ends, all that it started does.

    Args:
        folder: where its log goes.
        deadline: seconds after which it is ended.
        stop: set where the campaign ends.

    Raises:
        Stopped: that happened.
    """
    began, log = time.monotonic(), folder / "log"
    with open(log, "wb") as stderr:
        popen = subprocess.Popen(
            [sys.executable, "-m", module, str(file)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr,
            env={**os.environ, **ONE_THREAD}, start_new_session=True,
        )  # fmt: skip
    tree = _Tree(popen)
    try:
        in_time = _wait(tree, began + deadline, stop)
        seconds = round(time.monotonic() - began, 3)
    finally:
        tree.end()
        assert popen.stdin is not None
        popen.stdin.close()
    return Child(in_time=in_time, code=popen.returncode, seconds=seconds, last_line=_last_line(log))


def ask(request: Request, folder: Path, *, deadline: float, stop: threading.Event) -> Facts:
    """Runs a request; folder: an empty one, for the request, the record and the log.

    Raises:
        Stopped: the campaign ends.
    """
    file = folder / "request.json"
    file.write_text(request.model_dump_json(), encoding="utf-8")
    child = run("parity.mutants.asked", file, folder, deadline=deadline, stop=stop)
    if not child.in_time:
        message = f"took over its deadline of {deadline:.0f} s, and was killed"
        return Facts(ended=Ended.HUNG, message=message, seconds=child.seconds)
    try:
        return of_run(Run.model_validate_json(request.record.read_bytes()), seconds=child.seconds)
    except (OSError, ValidationError):
        return Facts(ended=Ended.CRASHED, message=_how(child), seconds=child.seconds)


def _how(child: Child) -> str:
    if child.code == REFUSED:
        return child.last_line
    how = f"ended with exit code {child.code}" if child.code >= 0 else f"was killed by signal {-child.code}"
    return f"its process {how}: {child.last_line}"


def _wait(tree: _Tree, until: float, stop: threading.Event) -> bool:
    """Whether it ended in time."""
    ticks = 0
    while time.monotonic() < until:
        if stop.is_set():
            raise Stopped
        with contextlib.suppress(subprocess.TimeoutExpired):
            tree.popen.wait(TICK_SECONDS)
            return True
        ticks += 1
        if ticks % 10 == 0:
            tree.look()
    return False


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 16 * LOG_CHARACTERS))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return _CONTROL.sub(" ", lines[-1])[:LOG_CHARACTERS] if lines else "it said nothing"
