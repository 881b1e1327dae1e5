"""merge_manifest.json: what a merged model was made of.

Beside what the adapter says of itself it holds no path, no time and no program's version, so that the same merge gives the same bytes
wherever it is done, and however the base is sharded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.adapter_fields import Key, Logical
from contract.artifacts.record import Line, Lines, Record, Sha256, read_record
from contract.artifacts.safetensors_writer import little_endian
from contract.model.keymap import GPT2_PREFIX
from contract.run.spec import Graph, Method, Whole

MANIFEST = "merge_manifest.json"

BASE_POLICY = "original_weights"
"""Merged onto the checkpoint's own weights. An adapter that was trained on their NF4 values was trained on another model, which
differs by the error of quantisation; a stack's in-memory merge onto its dequantised base gives that one."""

_Count = Annotated[int, Field(ge=0)]


class Changed(Record):
    """One key that is not the base's: the linears that lie in it, its values, and how many of them differ from the base's."""

    linears: Annotated[tuple[Logical, ...], Field(strict=False, min_length=1)]
    values: _Count
    changed: _Count


class MergedAdapter(Record):
    """The adapter that was merged; `sha256` is content_sha256's."""

    sha256: Sha256
    method: Method
    quant: Quant | None
    graph: Graph | None
    base_model: Line | None
    adapter_tag: Line | None
    notes: Lines


class MergeManifest(Record):
    """What a merged model was made of.

    base_sha256: of the base's tensors (tensors_sha256); earlier: adapters that had been merged into the base already, oldest first.
    """

    format: Literal["twostack_merge"] = "twostack_merge"
    version: Annotated[Literal[1], Whole] = 1
    base_policy: Literal["original_weights"] = "original_weights"
    base_sha256: Sha256
    adapter: MergedAdapter
    earlier: Annotated[tuple[MergedAdapter, ...], Field(strict=False)] = ()
    claims_full_attention_fidelity: bool
    untied_head: bool
    keys: dict[Key, Changed]
    weights: dict[Line, Sha256] = Field(description="weight file -> its SHA-256")


def read_manifest(folder: Path) -> MergeManifest:
    """Reads a merged model's manifest.

    Raises:
        ContractError, ContractErrors: it's not there, damaged, or of another format or version.
    """
    return read_record(MergeManifest, folder / MANIFEST, remedy="merge again")


def described(adapter: Adapter) -> MergedAdapter:
    """What the manifest says of an adapter."""
    return MergedAdapter(
        sha256=content_sha256(adapter),
        method=adapter.method,
        quant=adapter.quant,
        graph=adapter.graph,
        base_model=adapter.base_model,
        adapter_tag=adapter.adapter_tag,
        notes=adapter.notes,
    )


def content_sha256(adapter: Adapter) -> str:
    """SHA-256 of what an adapter adds: for each linear by its key (GPT-2's without the prefix), offset, scale and matrices.

    So it's the same whatever format the adapter lies in; but PEFT's fused c_attn is another adapter than its parts.
    """
    found = hashlib.sha256()
    keys = {logical: place.key.removeprefix(GPT2_PREFIX) for logical, place in adapter.places.items()}
    for logical in sorted(adapter.matrices, key=lambda name: (keys[name], adapter.places[name].offset or 0, name)):
        place, (a, b) = adapter.places[logical], adapter.matrices[logical]
        found.update(f"{keys[logical]} {place.offset or 0} {adapter.scale(logical).hex()} {a.shape} {b.shape}\n".encode())
        found.update(little_endian(a))
        found.update(little_endian(b))
    return found.hexdigest()


def tensors_sha256(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """SHA-256 of a checkpoint's tensors, however they are sharded: a line `KEY DTYPE SHAPE SHA256` for each key in order.

    Args:
        tensors: key -> dtype, shape, SHA-256 of its bytes.
    """
    lines = (f"{key} {dtype} {list(shape)} {digest}\n" for key, (dtype, shape, digest) in sorted(tensors.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
