"""What a campaign knows, on disk: a line of JSON an asking, appended and flushed to the disk as soon as it is known.

A campaign that was broken off goes on from it. A line holds bare facts under a key that holds all they depend on, so that a changed
source, another version or another seed asks again, and words about a mutant, which change nothing, do not.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pydantic import ValidationError

from contract.errors import UserError
from contract.worker.files import replacing
from parity.mutants.facts import Ended, Facts

MOST_BYTES = 64 << 20
"""Beyond that the file is written anew without what no longer counts, the older half of its lines."""


class Ledger:
    """The facts that are known, by key; one process has the file at a time, several threads may add to it.

    Args:
        fresh: begins the file anew.

    Raises:
        UserError: another campaign has it, or it can't be written.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self._adding = threading.Lock()
        self._known: dict[str, Facts] = {}
        self._file = self._opened(fresh)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        os.close(self._lock)

    def get(self, key: str) -> Facts | None:
        """What is known under a key."""
        return self._known.get(key)

    def add(self, key: str, about: Mapping[str, object], facts: Facts, *, lasting: bool = True) -> None:
        """Keeps facts: when this returns they are on the disk. about: for a reader. lasting: else this campaign alone has them."""
        if not lasting:
            with self._adding:
                self._known[key] = facts
            return
        line = json.dumps({"key": key, **about, "facts": facts.model_dump(mode="json")}, separators=(",", ":"))
        with self._adding:
            self._known[key] = facts
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _opened(self, fresh: bool) -> BinaryIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._hold()
            if fresh:
                self.path.unlink(missing_ok=True)
            self._read()
            return open(self.path, "ab")
        except OSError as error:
            raise UserError(f"{error.filename or self.path} can't be written ({error.strerror}); give another file with --state") from None

    def _hold(self) -> int:
        """A lock that the system frees when this process ends, however it does. The file that it is on stays."""
        lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(
                f"another campaign writes to {self.path}; wait for it, or give this one a file of its own with --state"
            ) from None
        return lock

    def _read(self) -> None:
        """What a power cut left of a last line is cut off; any other line that is none is left out."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        if len(whole) > MOST_BYTES:
            lines = lines[len(lines) // 2 :]
        if sum(map(len, lines)) < len(content):
            with replacing(self.path) as file:
                file.writelines(lines)
        for line in lines:
            try:
                entry = json.loads(line)
                facts = Facts.model_validate(entry["facts"])
            except (ValueError, KeyError, TypeError, ValidationError):
                continue
            if facts.ended is Ended.DONE:  # what hung or crashed may have been the machine's doing: the next campaign asks again
                self._known[entry["key"]] = facts
