"""The adapter format v3: candle_qlora_adapter.safetensors and populi_adapter_manifest_v3.json.

A v2 description beside it says the same for programs that know no other; where both are there, both must say it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from contract.artifacts import v2
from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.adapter_fields import (
    TENSORS,
    AdapterFields,
    Key,
    adapter_from,
    fields_of,
    read_tensors,
    tensors_of,
    write_fields,
)
from contract.artifacts.record import Line, read_record
from contract.artifacts.safetensors_writer import write_matrices
from contract.errors import ContractError, brief
from contract.run.spec import Method, Whole

MANIFEST = "populi_adapter_manifest_v3.json"
_REMEDY = "give a v3 adapter's folder, or write the adapter again"


class Manifest(AdapterFields):
    """populi_adapter_manifest_v3.json; `quant` is null where it is not known how the base was held."""

    format: Literal["vox_mens_adapter"]
    version: Annotated[Literal[3], Whole]
    adapter_method: Method
    quant: Quant | None
    embed_key: Key | None = None
    base_model: Line | None = None


def read(folder: Path) -> Adapter:
    """Reads a v3 adapter.

    What a v2 description beside it knows more (embed_key, base_model, quant) is taken from there.

    Raises:
        ContractError, ContractErrors: as v2.read; or the v2 description beside it says something else.
    """
    manifest = read_record(Manifest, folder / MANIFEST, remedy=_REMEDY)
    path, matrices = read_tensors(folder)
    adapter = adapter_from(
        manifest, matrices, place=folder / MANIFEST, tensors=path, embed_key=manifest.embed_key, base_model=manifest.base_model,
        method=manifest.adapter_method, quant=manifest.quant,
    )  # fmt: skip
    if not (folder / v2.META).exists():
        return adapter
    meta = v2.read_meta(folder)
    _require_agreement(folder, manifest, meta)
    return replace(
        adapter,
        embed_key=adapter.embed_key or meta.embed_key,
        base_model=adapter.base_model or meta.base_model,
        quant=adapter.quant or meta.quant,
    )


def write(folder: Path, adapter: Adapter) -> None:
    """Writes a v3 adapter into a folder, and the v2 description beside it where the adapter knows its embed_key.

    Each file whole or not at all, the same bytes for the same adapter.

    Raises:
        ContractError: the adapter does not know vocab or d_model.
    """
    manifest = Manifest(
        format="vox_mens_adapter",
        version=3,
        adapter_method=adapter.method,
        quant=adapter.quant,
        embed_key=adapter.embed_key,
        base_model=adapter.base_model,
        **fields_of(adapter, MANIFEST),
    )
    write_matrices(folder / TENSORS, tensors_of(adapter))
    write_fields(folder / MANIFEST, manifest)
    if adapter.embed_key is not None:
        v2.write_meta(folder, adapter)


def _require_agreement(folder: Path, manifest: Manifest, meta: v2.Meta) -> None:
    mine, theirs = manifest.model_dump(), meta.model_dump()
    for name in [*sorted(AdapterFields.model_fields), "adapter_method", "quant", "embed_key", "base_model"]:
        silent = name in ("quant", "embed_key", "base_model") and None in (mine[name], theirs[name])
        if mine[name] != theirs[name] and not silent:
            raise ContractError(
                f"{folder / v2.META}: {name}", got=brief(theirs[name]), allowed=f"{brief(mine[name])}, as {MANIFEST} beside it has",
                remedy="remove the file that is not of this adapter",
            )  # fmt: skip
