"""Weights by content hash: they do not travel, each worker maps its own copy."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors' NumPy reader needs)
import numpy as np
import platformdirs
from safetensors import safe_open

_verified: dict[tuple[int, ...], str] = {}


@dataclass(frozen=True, kw_only=True)
class FileReference:
    """One tensor of a safetensors file, named by the file's SHA-256; `path` is only where it may lie.

    start, stop: that part of its last dimension (GPT-2's q, k and v lie in one tensor). transposed: turned after that, a matrix that
    lies [in, out] comes as [out, in].
    """

    sha256: str
    tensor: str
    path: str
    start: int | None = None
    stop: int | None = None
    transposed: bool = False

    def fields(self) -> dict[str, Any]:
        """Its fields without those at their default: what travels, and what it can be made of again."""
        return {field.name: value for field in dataclasses.fields(self) if (value := getattr(self, field.name)) != field.default}


class FileNeeded(Exception):
    """The file with this SHA-256 is not here."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"no file with SHA-256 {sha256} here")
        self.sha256 = sha256


def cache_folder() -> Path:
    """The user's cache folder for this program (models, received files)."""
    return Path(platformdirs.user_cache_dir("twostack"))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place whole, or not at all: temporary, fsync, rename.

    Raises:
        OSError: it can't be written, or is a link that leads back to itself.
    """
    try:
        path = path.resolve()  # a link keeps pointing where it did
    except RuntimeError:  # how Python 3.11 tells of a loop
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _locked(temporary: Path) -> BinaryIO:
    """A new file with a lock that says that its process lives: the system frees it even after a SIGKILL."""
    while True:
        # Its name can be guessed: a link that somebody put there must not lead out of the folder.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return os.fdopen(descriptor, "wb")
        os.close(descriptor)  # swept between the two calls


def sweep(path: Path) -> None:
    """Removes what processes that were killed left of `replacing(path)`."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), open(temporary, "rb+") as file:  # OSError: in use, or not ours
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def identity(file: Path | int) -> tuple[int, ...]:
    """What stays as it is as long as a file, by path or descriptor, is the same and nothing writes to it.

    Raises:
        OSError: it is not there, or not for us to see.
    """
    status = os.stat(file)
    # The time of change can't be set back as that of modification can.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read again only when it is another file, or was changed."""
    key = identity(path)
    if key not in _verified:
        with open(path, "rb") as file:
            _verified[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _verified[key]


def load(reference: FileReference) -> np.ndarray:
    """The tensor that a reference names, from this machine's copy of the file.

    Raises:
        FileNeeded: no file here has that content.
        ValueError: the file has no such tensor.
    """
    return read(_find(reference), reference.tensor, start=reference.start, stop=reference.stop, transposed=reference.transposed)


def read(path: Path, name: str, *, start: int | None = None, stop: int | None = None, transposed: bool = False) -> np.ndarray:
    """A tensor of a safetensors file, or a part of it, as a FileReference says.

    Raises:
        ValueError: the file has no such tensor.
    """
    with safe_open(path, framework="numpy") as file:
        names: list[str] = file.keys()
        if name not in names:
            raise ValueError(f"{path.name} has no tensor {name!r}; it has {len(names)} others")
        tensor: np.ndarray = file.get_tensor(name)
    part = tensor if start is None and stop is None else tensor[..., start:stop]
    return np.asarray(part.T if transposed else part, order="C")


def receive(sha256: str, content: bytes) -> Path:
    """Keeps a file that the launcher sent.

    Raises:
        ValueError: the content is not what was asked for.
    """
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise ValueError(f"got a file with SHA-256 {got}, asked for {sha256}; send it again")
    path = _received(sha256)
    with replacing(path) as file:
        file.write(content)
    return path


def _received(sha256: str) -> Path:
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is no SHA-256; give 64 hexadecimal digits")
    return cache_folder() / "files" / f"{sha256}.safetensors"


def _find(reference: FileReference) -> Path:
    for path in (Path(reference.path), _received(reference.sha256)):
        try:
            if path.is_file() and sha256_of(path) == reference.sha256:
                return path
        except OSError:
            continue  # there, and not for us to read: the launcher's machine is not always ours
    raise FileNeeded(reference.sha256)
