"""From one adapter format to another; what the new one can't hold is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from contract.artifacts import peft, training_checkpoint, v2, v3
from contract.artifacts.adapter import Adapter
from contract.artifacts.kinds import ADAPTERS, Kind, what_is
from contract.artifacts.merge_plan import open_base, plan
from contract.artifacts.output_folder import output_folder
from contract.errors import ContractError

Format = Literal["v2", "v3", "peft"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """An adapter that was read; `left_out`: what its files say beyond it."""

    kind: Kind
    folder: Path
    adapter: Adapter
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of a conversion; `lost`: what the source says, and the target can't."""

    folder: Path
    source: Kind
    linears: int
    lost: tuple[str, ...]


def read_source(path: Path) -> Source:
    """Reads an adapter, or a training checkpoint's, by the format of its files.

    Raises:
        ContractError, ContractErrors: nothing of the kind is there, or it's not sound.
    """
    kind, folder = what_is(path)
    match kind:
        case Kind.V2:
            return Source(kind=kind, folder=folder, adapter=v2.read(folder))
        case Kind.V3:
            return Source(kind=kind, folder=folder, adapter=v3.read(folder))
        case Kind.PEFT:
            adapter, left_out = peft.read(folder)
            return Source(kind=kind, folder=folder, adapter=adapter, left_out=left_out)
        case Kind.TRAINING_CHECKPOINT:
            checkpoint = training_checkpoint.read(folder)
            left_out = ("optimiser state, step and seed: only a training checkpoint holds them",)
            return Source(kind=kind, folder=folder, adapter=checkpoint.adapter, left_out=left_out)
    allowed = ", ".join((*ADAPTERS, Kind.TRAINING_CHECKPOINT))
    raise ContractError(str(path), got=kind, allowed=allowed, remedy="give the adapter")


def convert(source: Path, target: Path, to: Format, *, base: Path | None = None, force: bool = False) -> Converted:
    """Writes an adapter in another format, into a folder of its own, whole or not at all.

    Args:
        base: the base model's folder; what the source does not say of the base is taken from there, and every linear is held against it.
        force: replace an adapter that is there already; nothing else is ever replaced.

    Raises:
        ContractError, ContractErrors: the source or the base is not sound; they don't go together; the target is not free; the format
            must say what is not known.
    """
    read = read_source(source)
    adapter = read.adapter if base is None else _completed(read.adapter, base)
    sources = (read.folder,) if base is None else (read.folder, base)
    with output_folder(target, force=force, replaces=ADAPTERS, sources=sources) as folder:
        lost = _write(folder, adapter, to)
    return Converted(folder=target, source=read.kind, linears=len(adapter.matrices), lost=(*read.left_out, *lost))


def _write(folder: Path, adapter: Adapter, to: Format) -> tuple[str, ...]:
    if to == "peft":
        return peft.write(folder, adapter)
    (v2 if to == "v2" else v3).write(folder, adapter)
    return ()


def _completed(adapter: Adapter, folder: Path) -> Adapter:
    base = open_base(folder)
    plan(adapter, base)
    return replace(
        adapter,
        embed_key=adapter.embed_key or base.embed_key,
        vocab=adapter.vocab or base.layout.vocab_size,
        d_model=adapter.d_model or base.layout.hidden_size,
    )
