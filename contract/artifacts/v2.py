"""The adapter format v2: candle_qlora_adapter.safetensors and candle_qlora_adapter_meta.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.adapter_fields import (
    TENSORS,
    AdapterFields,
    Key,
    adapter_from,
    fields_of,
    read_tensors,
    tensors_of,
    unknown,
    write_fields,
)
from contract.artifacts.record import Line, read_record
from contract.artifacts.safetensors_writer import write_matrices
from contract.run.spec import Method, Whole

META = "candle_qlora_adapter_meta.json"
_REMEDY = "give a v2 adapter's folder, or write the adapter again"


class Meta(AdapterFields):
    """candle_qlora_adapter_meta.json. Without adapter_method it's qlora, as the format's name says."""

    format: Literal["vox_mens_qlora_lora_only_v2"]
    version: Annotated[Literal[2], Whole]
    embed_key: Key
    base_model: Line | None
    adapter_method: Method = "qlora"
    quant: Quant | None = None


def read_meta(folder: Path) -> Meta:
    """Reads the description alone.

    Raises:
        ContractError, ContractErrors: it's not there, or not a v2 adapter's.
    """
    return read_record(Meta, folder / META, remedy=_REMEDY)


def read(folder: Path) -> Adapter:
    """Reads a v2 adapter.

    Raises:
        ContractError, ContractErrors: a file is missing or damaged; another format or version; an unknown, missing or wrong field; a
            tensor that is missing, unknown, not float32, not of its rank, or not finite.
    """
    meta = read_meta(folder)
    path, matrices = read_tensors(folder)
    return adapter_from(
        meta, matrices, place=folder / META, tensors=path, embed_key=meta.embed_key, base_model=meta.base_model, method=meta.adapter_method,
        quant=meta.quant,
    )  # fmt: skip


def write(folder: Path, adapter: Adapter) -> None:
    """Writes a v2 adapter into a folder: each file whole or not at all, the same bytes for the same adapter.

    Raises:
        ContractError: the adapter does not know embed_key, vocab or d_model.
    """
    meta = _meta(adapter)
    write_matrices(folder / TENSORS, tensors_of(adapter))
    write_fields(folder / META, meta)


def write_meta(folder: Path, adapter: Adapter) -> None:
    """Writes the description alone."""
    write_fields(folder / META, _meta(adapter))


def _meta(adapter: Adapter) -> Meta:
    if adapter.embed_key is None:
        raise unknown(f"{META}: embed_key")
    return Meta(
        format="vox_mens_qlora_lora_only_v2",
        version=2,
        embed_key=adapter.embed_key,
        base_model=adapter.base_model,
        adapter_method=adapter.method,
        quant=adapter.quant,
        **fields_of(adapter, META),
    )
