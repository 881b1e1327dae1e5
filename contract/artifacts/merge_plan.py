"""Which of a base checkpoint's tensors a merge changes, and whether it can: settled before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from contract.artifacts.adapter import Adapter
from contract.artifacts.delta import Delta
from contract.artifacts.names import EMBEDDING_KEYS, HEAD, HEAD_KEY
from contract.artifacts.safetensors_writer import ITEM_BYTES, Entry
from contract.artifacts.tensors import DTYPES
from contract.errors import ContractError, brief
from contract.model import layout, shards
from contract.model.folder import CONFIG
from contract.model.headers import Stored
from contract.model.keymap import GPT2_PREFIX
from contract.model.layout import Layout
from contract.reading import json_file

_REMEDY = "take the base that the adapter was trained on"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The checkpoint that is merged onto, as its config.json and its headers show it."""

    folder: Path
    config: Mapping[str, Any]
    layout: Layout
    stored: Mapping[str, Stored]

    @property
    def embed_key(self) -> str:
        """The embedding's key."""
        return next((key for key in EMBEDDING_KEYS if key in self.stored), EMBEDDING_KEYS[0])


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key of the merged model that is not copied: the tensor that it begins as, and what is added to it."""

    key: str
    source: Stored
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A merge. untied: the head, which was the embedding, gets a weight of its own."""

    base: Base
    changes: Mapping[str, Change]
    untied: bool

    def entries(self) -> list[Entry]:
        """Every tensor of the merged model, by key: the changed ones in float32, the others in their own dtype."""
        kept = {key: (tensor.dtype, tensor.shape) for key, tensor in self.base.stored.items()}
        new = {key: ("F32", change.source.shape) for key, change in self.changes.items()}
        return [Entry(name=key, dtype=dtype, shape=shape) for key, (dtype, shape) in sorted((kept | new).items())]


def open_base(folder: Path) -> Base:
    """Opens a checkpoint's folder; only config.json, the index and headers are read.

    Raises:
        ContractError, ContractErrors: a file is missing or not sound; an architecture or a field of config.json that is not honoured; a
            tensor of a dtype that can't be copied.
    """
    config = json_file(folder / CONFIG, remedy="give a checkpoint's folder")
    model = layout.read(config, where=str(folder / CONFIG))
    stored = shards.read(*shards.find(folder))
    for key, tensor in stored.items():
        if tensor.dtype not in ITEM_BYTES:
            raise ContractError(
                f"{tensor.file}: {brief(key)}", got=tensor.dtype, allowed=", ".join(DTYPES), remedy="convert the checkpoint to one of them"
            )
    return Base(folder=folder, config=config, layout=model, stored=stored)


def plan(adapter: Adapter, base: Base) -> Plan:
    """Finds the weight of each of the adapter's linears in the base.

    A head that is tied to the embedding gets a weight of its own, lm_head.weight: added to the embedding itself, the delta would
    change what goes into the model, too.

    Raises:
        ContractError: the adapter is of another vocabulary or width; a key is missing or of another shape or dtype; an embedding; two
            linears in one place.
    """
    for name, got, wanted in (
        ("vocab", adapter.vocab, base.layout.vocab_size),
        ("d_model", adapter.d_model, base.layout.hidden_size),
    ):
        if got is not None and got != wanted:
            raise ContractError(f"adapter: {name}", got=str(got), allowed=f"{wanted}, as {base.folder} has", remedy=_REMEDY)
    sources: dict[str, Stored] = {}
    deltas: dict[str, list[Delta]] = {}
    untied = False
    for logical in adapter.layer_order:
        key, source = _source(logical, adapter, base)
        untied |= logical == HEAD and base.layout.tie_word_embeddings
        sources[key] = source
        deltas.setdefault(key, []).append(_delta(adapter, logical, key, source))
    for key, of_key in deltas.items():
        _require_apart(key, of_key)
    changes = {key: Change(key=key, source=source, deltas=tuple(deltas[key])) for key, source in sources.items()}
    return Plan(base=base, changes=changes, untied=untied)


def _source(logical: str, adapter: Adapter, base: Base) -> tuple[str, Stored]:
    """The merged model's key of a linear, and the tensor that its weight begins as."""
    named = adapter.places[logical].key
    key = _as_stored(named, base)
    embedding = key in EMBEDDING_KEYS or key == adapter.embed_key
    if logical == HEAD and base.layout.tie_word_embeddings and (embedding or key == HEAD_KEY):
        if base.embed_key not in base.stored:
            raise ContractError(f"{base.folder}", got="no embedding", allowed=" or ".join(EMBEDDING_KEYS), remedy=_REMEDY)
        return HEAD_KEY, base.stored[base.embed_key]
    if embedding:
        allowed = "a linear's weight" if logical != HEAD else f"{HEAD_KEY}, since the base's head is not tied to it"
        raise ContractError(f"base_key_map: {logical}", got=f"{named}, the embedding", allowed=allowed, remedy=_REMEDY)
    if key not in base.stored:
        near = ", ".join(sorted(base.stored)[:3])
        raise ContractError(f"base_key_map: {logical}", got=brief(named), allowed=f"a key of {base.folder}, such as {near}", remedy=_REMEDY)
    return key, base.stored[key]


def _as_stored(key: str, base: Base) -> str:
    """GPT-2's keys come with and without the prefix `transformer.`, and mean the same."""
    if base.layout.model_type != "gpt2" or key in base.stored or key == HEAD_KEY:
        return key
    other = key.removeprefix(GPT2_PREFIX) if key.startswith(GPT2_PREFIX) else GPT2_PREFIX + key
    return other if other in base.stored else key


def _delta(adapter: Adapter, logical: str, key: str, source: Stored) -> Delta:
    place = adapter.places[logical]
    offset = place.offset or 0
    delta = Delta(adapter=adapter, logical=logical, row=0 if place.transposed else offset, column=offset if place.transposed else 0)
    where = f"{source.file}: {key}"
    if source.dtype not in DTYPES:
        raise ContractError(where, got=source.dtype, allowed=", ".join(DTYPES), remedy="convert the checkpoint to one of them")
    rows, columns = delta.shape
    whole = place.offset is None
    fits = len(source.shape) == 2 and (
        (rows, columns) == source.shape
        if whole
        else (delta.row + rows <= source.shape[0] and delta.column + columns <= source.shape[1])
        and (columns == source.shape[1] or place.transposed)
        and (rows == source.shape[0] or not place.transposed)
    )
    if not fits:
        a, b = (list(matrix.shape) for matrix in adapter.matrices[logical])
        what = f"[{rows}, {columns}]" + ("" if whole else f" at offset {offset}")
        raise ContractError(
            where, got=f"shape {list(source.shape)}", allowed=f"{what}, as {logical} has it (A {a}, B {b})", remedy=_REMEDY
        )  # fmt: skip
    return delta


def _require_apart(key: str, deltas: list[Delta]) -> None:
    """Two linears of one place would both be added to it."""
    ordered = sorted(deltas, key=lambda delta: (delta.row, delta.column, delta.logical))
    for before, after in pairwise(ordered):
        if before.row + before.shape[0] > after.row and before.column + before.shape[1] > after.column:
            raise ContractError(
                f"base_key_map: {after.logical}", got=f"{key}, where {before.logical} lies too", allowed="a place of its own",
                remedy="correct the adapter",
            )  # fmt: skip
