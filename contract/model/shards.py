"""The safetensors files of one checkpoint, and the index that says which tensor lies in which of them.

An index comes from who made the checkpoint and must not make us open any other file: a shard's name is a plain file name in the
index's own folder. A link there may point out of it: the hub's cache is made of links, and a download can't bring one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from contract import reading
from contract.errors import ContractError, brief
from contract.model import headers
from contract.model.headers import Stored

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_SHARD = re.compile(r"[^/\\\x00-\x1f\x7f]+\.safetensors")
_NAME_BYTES = 255
"""No file system takes a longer name."""

_REMEDY = "download the checkpoint again"


def find(folder: Path) -> tuple[tuple[Path, ...], Path | None]:
    """A folder's shards by their names' order, and its index, where it has one.

    Raises:
        ContractError: there are none, the index is damaged or names another folder's file, or the folder has weights beside those
            that the index names.
    """
    index, alone = folder / INDEX, folder / WEIGHTS
    if not index.is_file():
        if not alone.is_file():
            raise ContractError(
                str(folder), got=f"neither {WEIGHTS} nor {INDEX}", allowed="a checkpoint's folder", remedy="give one with safetensors files"
            )
        return (alone,), None
    names = set(read_index(index).values())
    if alone.is_file() and WEIGHTS not in names:
        raise ContractError(
            str(folder), got=f"{WEIGHTS}, and {INDEX} that does not name it", allowed="one of the two", remedy="remove what is not meant"
        )
    return tuple(folder / name for name in sorted(names)), index


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index: key -> name of the shard.

    Raises:
        ContractError: it is no index, or a shard is not a safetensors file of the same folder.
    """
    where = reading.json_file(path, remedy=_REMEDY).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ContractError(f"{path}: weight_map", got=brief(where), allowed="an object of key to file", remedy=_REMEDY)
    for key, shard in where.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or len(shard.encode()) > _NAME_BYTES:
            raise ContractError(
                f"{path}: weight_map, {brief(key)}", got=brief(shard), allowed="a safetensors file in the same folder", remedy=_REMEDY
            )
    return where


def read(shards: Sequence[Path], index: Path | None) -> dict[str, Stored]:
    """Every tensor of a checkpoint by its key.

    Raises:
        ContractError: a shard is not sound, a key lies in two of them, or the index and the shards say different things.
    """
    stored: dict[str, Stored] = {}
    for shard in shards:
        for key, tensor in headers.read(shard).items():
            if key in stored:
                raise ContractError(
                    f"{shard}: {brief(key)}", got=f"a key that {stored[key].file.name} has too", allowed="each key once", remedy=_REMEDY
                )
            stored[key] = tensor
    if index is not None:
        _require_as_indexed(index, read_index(index), stored)
    return stored


def _require_as_indexed(path: Path, where: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
    for key in sorted(where.keys() | stored.keys()):
        shard = stored[key].file.name if key in stored else None
        if where.get(key) != shard:
            raise ContractError(
                f"{path}: weight_map, {brief(key)}",
                got=f"{where.get(key) or 'nothing'}, and it lies in {shard or 'no shard'}",
                allowed="the shard in which it lies",
                remedy=_REMEDY,
            )
