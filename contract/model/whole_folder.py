"""A folder that appears whole, by one rename, or not at all.

It is built in a temporary folder beside its place. A lock that the building process holds for as long as it
lives marks a temporary folder as in use; the operating system frees it even after a SIGKILL, so that a later build can
tell an abandoned folder from one that another process is building, and removes only the former.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"
_SUFFIX = ".partial"


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, gone at the end whatever happens; abandoned ones of `target` go first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def settle(built: Path, target: Path, *, aside: Path | None = None) -> bool:
    """Renames `built` to `target`.

    Args:
        aside: where a folder that is already there goes; None leaves it in place.

    Returns:
        False where another process was first; its folder stays.
    """
    if aside is not None:
        with suppress(FileNotFoundError):
            os.rename(target, aside)
    try:
        os.rename(built, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def sweep(target: Path) -> None:
    """Removes temporary folders of `target` whose process is gone."""
    for folder in target.parent.glob(f"{glob.escape(_prefix(target))}*{_SUFFIX}"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new temporary folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=_SUFFIX, dir=target.parent))
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # swept by another process between the two calls
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}."
