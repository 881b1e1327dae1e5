"""A launcher for where no isolation can be had and the user said so: limits and a process group of its own, and nothing else.

A script for `python -I -S`: it imports nothing of ours, and is given a plan in JSON. It says what namespaces.py says. On Linux it adopts
what the command leaves behind and kills that when the command ends or SIGTERM comes; a command can kill it, though, being of the same user.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str], control: int) -> None:
    """Runs the command, waits for its end, and kills what it started."""
    os.set_inheritable(control, False)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = os.fork()
    if not first:
        os.setsid()
        os.execve(command[0], command, {})
    signal.signal(signal.SIGTERM, lambda *_: _end(first))
    for number in range(3):
        os.close(number)
    _say(control, "child-pid", os.getpid())
    while True:
        child, status = os.wait()
        if child == first:
            _say(control, "exit-code", os.waitstatus_to_exitcode(status))
            _end(first)


def _end(first: int) -> NoReturn:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(first, signal.SIGKILL)
    while left := _descendants():
        for process in left:  # stopped first: what is stopped starts nothing new
            _signal(process, signal.SIGSTOP)
        for process in left:
            _signal(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _descendants() -> list[int]:
    """Processes below this one, those that were left behind too; none where there is no /proc."""
    parents = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                    parents[int(name)] = int(parent) if state != "Z" or int(parent) == os.getpid() else 0
    found: list[int] = []
    below = {os.getpid()}
    while below:
        below = {process for process, parent in parents.items() if parent in below}
        found += below
    return found


def _say(control: int, key: str, value: int) -> None:
    os.write(control, json.dumps({key: value}).encode() + b"\n")


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    main(plan["command"], plan["control"])
