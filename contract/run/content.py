"""Which bytes a run's inputs are: SHA-256 of each file, remembered by path, size and times.

A digest says what was asked for; these say what was there. A model of 140 GB takes minutes to hash, so that a file's hash is kept in
the user's cache, one small file an entry; whatever is wrong with the cache only costs the hashing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from contract.errors import ContractError, ContractErrors, UserError
from contract.model.preflight import locate_files
from contract.reading import bytes_of, json_of, validated
from contract.run.spec import FineTuneContract
from contract.worker.files import cache_folder, replacing

CHUNK_BYTES = 2**22
MAX_ENTRY_BYTES = 2**16

# A file that changes twice within the granularity of its times, once before it is read and once after, looks unchanged. FAT's, the
# coarsest, is 2 s. So what changed so recently is hashed again the next time (git's "racy" entries: its racy-git.txt).
RACY_NS = 2 * 10**9

Progress = Callable[[str, int, int], None]
"""Called with the role, bytes done and bytes in all."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A contract's input files by role (`data.train_file`, `model.weight_shards/NAME`), and why others are not among them."""

    files: Mapping[str, Path]
    faults: tuple[UserError, ...] = ()


class _State(BaseModel):
    """What a file's hash is remembered by."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> _State:
        """A file's state now. Its time of change can't be set back, as that of modification can."""
        return cls(
            path=str(path), device=status.st_dev, inode=status.st_ino, size=status.st_size,
            mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns,
        )  # fmt: skip


class _Entry(BaseModel):
    """A file of the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    state: _State
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def inputs_of(contract: FineTuneContract) -> Inputs:
    """The files that a contract means, as far as they are here. The order of the shards means nothing to their roles."""
    files: dict[str, Path] = {}
    faults: list[UserError] = []
    try:
        model = locate_files(contract.model)
        files["model.config_json"] = model.config_json
        if model.tokenizer_json is not None:
            files["model.tokenizer_json"] = model.tokenizer_json
        names = Counter(shard.name for shard in model.shards)
        for shard in sorted(model.shards):
            files[f"model.weight_shards/{shard.name if names[shard.name] == 1 else shard}"] = shard
    except ContractErrors as several:
        faults += several.faults
    except UserError as fault:
        faults.append(fault)
    train_file = contract.data.train_file
    try:
        path = Path(train_file).expanduser()
        if path.is_file():
            files["data.train_file"] = path
        else:
            faults.append(
                ContractError("data.train_file", got=f"{path}, which is no file", allowed="a JSONL file", remedy="correct the path")
            )
    except (OSError, RuntimeError, ValueError) as error:  # a name that no file can have, a user who is not there
        faults.append(ContractError("data.train_file", got=f"{train_file} ({error})", allowed="a JSONL file", remedy="correct the path"))
    return Inputs(files=files, faults=tuple(faults))


def sha256_of_inputs(files: Mapping[str, Path], *, progress: Progress = lambda role, done, total: None) -> dict[str, str]:
    """SHA-256 in hexadecimal of each file, by role.

    Raises:
        ContractError: a file can't be read, or changed while it was.
    """
    return {role: _sha256(path, role, progress) for role, path in files.items()}


def _sha256(path: Path, role: str, progress: Progress) -> str:
    place = f"{role}: {path}"
    try:
        path = path.resolve()
        if not path.is_file():
            raise ContractError(place, got="no file", allowed="a file", remedy="correct the path")
        before = _State.of(path, path.stat())
        known = _remembered(before)
        if known is not None:
            return known
        sha256 = _streamed(path, before.size, lambda done: progress(role, done, before.size))
        after = _State.of(path, path.stat())
    except OSError as error:
        raise ContractError(place, got=error.strerror or str(error), allowed="a file to read", remedy="see to its rights") from None
    if sha256 is None or after != before:
        raise ContractError(place, got="a file that changed while it was read", allowed="one at rest", remedy="run again when it's whole")
    if time.time_ns() - max(after.mtime_ns, after.ctime_ns) >= RACY_NS:
        _remember(_Entry(state=after, sha256=sha256))
    return sha256


def _streamed(path: Path, size: int, progress: Callable[[int], None]) -> str | None:
    """SHA-256 of a file; None where it is not of that size."""
    sha256, done = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while done <= size and (chunk := file.read(CHUNK_BYTES)):
            sha256.update(chunk)
            done += len(chunk)
            progress(min(done, size))
    return sha256.hexdigest() if done == size else None


def _entry_path(path: str) -> Path:
    """One entry for a path, whatever becomes of the file, so that the cache does not grow with its changes."""
    return cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"


def _remembered(state: _State) -> str | None:
    path = _entry_path(state.path)
    try:
        entry = validated(_Entry, json_of(bytes_of(path, limit=MAX_ENTRY_BYTES), str(path)), str(path))
    except (ContractError, ContractErrors):  # absent or damaged: it's written anew
        return None
    return entry.sha256 if entry.state == state else None


def _remember(entry: _Entry) -> None:
    try:
        with replacing(_entry_path(entry.state.path)) as file:
            file.write(entry.model_dump_json().encode())
    except OSError:
        return  # an unwritable cache: hashed again the next time
