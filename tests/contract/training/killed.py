"""A run in a child process that ends itself with SIGKILL, at a chosen file operation or inside a write."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from contract.artifacts import safetensors_writer
from contract.training import checkpoints, session
from contract.training.inputs import Run
from contract.training.session import About, Prepared
from tests.contract.training.toy_run import contract_of
from tests.contract.training.toy_stack import ToyTrainer

OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
"""Audit events before which a run may be killed, beside writing `open`s, fsync, and every write of a tensors' file."""


class Deaf:
    """A channel that nobody cancels; it keeps what it was told."""

    def __init__(self, *, cancel_at: int | None = None) -> None:
        self.frames: list[dict[str, Any]] = []
        self._cancel_at = cancel_at

    @property
    def cancelled(self) -> bool:
        steps = [frame["step"] for frame in self.frames if frame["stage"] == "train"]
        return self._cancel_at is not None and bool(steps) and steps[-1] >= self._cancel_at

    def progress(self, **values: Any) -> None:
        self.frames.append(values)


def trained(
    home: Path, folder: Path, *, channel: Deaf | None = None, spoilt: str = "CPU", seconds: float = 0.0, **changed: Any
) -> dict[str, Any]:
    """The request `train` in this process, from the folder's newest checkpoint where it has one: the answer's values."""
    newest = checkpoints.newest(folder) if folder.exists() else None
    resume = None if newest is None else str(newest)
    make = partial(made, spoilt=spoilt, seconds=seconds)
    return session.train(channel or Deaf(), make, folder=str(folder), **request(home, resume=resume, **changed)).values


def made(run: Run, *, spoilt: str = "CPU", seconds: float = 0.0) -> Prepared:
    return Prepared(trainer=ToyTrainer(run, spoilt=spoilt, seconds=seconds), threads=1)


def request(home: Path, *, resume: str | None = None, **changed: Any) -> dict[str, Any]:
    """The values of the request `train`, but for its folder."""
    about = About(stack="toy", packages=("numpy",), device="CPU").model_dump(mode="json")
    return {"contract": contract_of(home, **changed).model_dump(mode="json"), "about": about, "resume": resume}


def in_child(work: Callable[[], object]) -> int:
    """Runs it in a fork: 0 where it came to its end, -9 where it was killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds: float, work: Callable[[], object]) -> int:
    """The same, with a SIGKILL from outside after some time."""

    def timed() -> None:
        parent = os.getpid()
        if os.fork() == 0:
            time.sleep(seconds)
            if os.getppid() == parent:  # else it's over, and its number may be another's
                os.kill(parent, signal.SIGKILL)
            os._exit(0)
        work()

    return in_child(timed)


def count_operations(work: Callable[[], object], place: Path) -> int:
    """How many operations a run has; it's run in a child, which leaves the number at `place`."""
    counter = Counter(None)

    def counted() -> None:
        counter.plant()
        work()
        place.write_text(str(counter.seen))

    assert in_child(counted) == 0
    return int(place.read_text())


def killed_at(operation: int, work: Callable[[], object]) -> int:
    """Runs it in a child that kills itself right before its operation of that number, from 0; in the middle of it, where it writes."""

    def planted() -> None:
        Counter(operation).plant()
        work()

    return in_child(planted)


def killed_self() -> None:
    """SIGKILL to this process, which no handler hears of."""
    os.kill(os.getpid(), signal.SIGKILL)


class Counter:
    """Counts a process's file operations.

    Args:
        fatal: the number, from 0, of the one right before which, or in the middle of which, where it writes, `die` is called; None: none.
        die: does not come back.
    """

    def __init__(self, fatal: int | None, die: Callable[[], object] = killed_self) -> None:
        self.seen = 0
        self._fatal, self._die = fatal, die

    def plant(self) -> None:
        """For the rest of this process: an audit hook can't be taken out again."""
        fsync, write = os.fsync, safetensors_writer.HashedFile.write

        def synced(descriptor: int) -> None:
            if not self._dies():
                fsync(descriptor)

        def half(file: safetensors_writer.HashedFile, content: bytes | memoryview) -> None:
            if self._dies(lambda: write(file, bytes(content)[: len(content) // 2])):
                return
            write(file, content)

        os.fsync = synced
        safetensors_writer.HashedFile.write = half  # type: ignore[method-assign]
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in OPERATIONS or writes:
            self._dies()

    def _dies(self, before: Callable[[], object] = lambda: None) -> bool:
        self.seen += 1
        if self._fatal is not None and self.seen > self._fatal:
            before()
            self._die()
        return False
