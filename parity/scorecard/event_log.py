"""events.jsonl: appended to, each line on disk before the next is asked for; a torn last line is dropped when it is opened again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from contract.errors import ContractError, UserError
from contract.reading import bytes_of
from parity.scorecard.event import EVENT, Completion, Infra

FILE = "events.jsonl"
MAX_BYTES = 2**32
_REMEDY = "take the file as the run wrote it"


def line_of(event: Completion | Infra) -> bytes:
    """The event's line."""
    return event.model_dump_json().encode() + b"\n"


def read_events(path: Path) -> list[Completion | Infra]:
    """The events of a log, in their order, a torn last line left out; of two completions of one event id the first counts.

    Raises:
        ContractError: it is not there, or a whole line of it is no event.
    """
    return _first_completions(_parsed(bytes_of(path, limit=MAX_BYTES, remedy=_REMEDY), path))


def _parsed(content: bytes, path: Path) -> Iterator[Completion | Infra]:
    whole, _, _ = content.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            yield EVENT.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = f"{path}:{number}: {'.'.join(map(str, first['loc']))}".removesuffix(": ")
            raise ContractError(place, got=f"no event ({first['msg']})", allowed="an event of this version", remedy=_REMEDY) from None


def _first_completions(events: Iterable[Completion | Infra]) -> list[Completion | Infra]:
    done: set[str] = set()
    kept: list[Completion | Infra] = []
    for event in events:
        if isinstance(event, Completion):
            if event.event_id in done:
                continue
            done.add(event.event_id)
        kept.append(event)
    return kept


class EventLog:
    """The log of one run, open for appending by this process alone."""

    def __init__(self, path: Path) -> None:
        """Opens the log, or begins one.

        Raises:
            ContractError: a whole line of it is no event.
            UserError: another process is writing to it.
            OSError: it can't be written.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._lock()
            content = bytes_of(path, limit=MAX_BYTES, remedy=_REMEDY)
            self.events = _first_completions(_parsed(content, path))
            self._size = content.rfind(b"\n") + 1
            if self._size < len(content):  # a kill or a full disk tore the last line
                os.ftruncate(self._descriptor, self._size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._done = {event.event_id for event in self.events if isinstance(event, Completion)}

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self._path}: another process writes to it; wait until it ends, or give another --out") from None
        except OSError:
            return  # a file system without locks

    def append(self, events: Iterable[Completion | Infra]) -> None:
        """Adds events; they are on disk when this returns. A completion whose event id has one already is left out.

        Raises:
            OSError: they can't be written, all of them: the log is as it was before.
        """
        new = [event for event in _first_completions(events) if not (isinstance(event, Completion) and event.event_id in self._done)]
        content = b"".join(map(line_of, new))
        with self._told_where():
            try:
                left = memoryview(content)
                while left:
                    left = left[os.write(self._descriptor, left) :]
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(content)
        self.events += new
        self._done |= {event.event_id for event in new if isinstance(event, Completion)}

    def close(self) -> None:
        """Ends; everything that was appended is on disk."""
        os.close(self._descriptor)

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        """A full disk tells of no file."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise
