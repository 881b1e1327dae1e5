"""What both merge commands do, and what they say of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from contract.commands.progress import progress_bars

if TYPE_CHECKING:
    from contract.artifacts.convert import Source
    from contract.artifacts.merge import Merged


def command_line(command: str, source: Path, base: str, output: Path, *, force: bool) -> str:
    """A merge command as a shell takes it, whatever the paths have in them."""
    operands = [str(source), base, str(output)]
    options = (["--force"] if force else []) + (["--"] if any(operand.startswith("-") for operand in operands) else [])
    return shlex.join(["finetune", command, *options, *operands])


def merge_and_tell(source: Source, base: str, output: Path, *, force: bool) -> None:
    """Merges a source that was read into a base by its name, and says what became of it."""
    from contract.artifacts.merge import merge
    from contract.model import folder

    with progress_bars() as progress:
        merged = merge(source.adapter, folder.locate(base, place="BASE"), output, force=force, sources=(source.folder,), progress=progress)
    typer.echo(f"{output}: {source.kind}, {len(source.adapter.matrices)} linears, merged into {len(merged.manifest.keys)} weights")
    for line in remarks(source, merged):
        typer.echo(line)


def merge_static_and_tell(source: Source, base: str, output: Path, *, force: bool) -> None:
    """Merges a source into the plain multi-head attention of each of a base's layers, and says what became of it."""
    from contract.artifacts.static_attention import merge_static
    from contract.model import folder

    with progress_bars() as progress:
        home = folder.locate(base, place="BASE")
        record = merge_static(source.adapter, home, output, force=force, sources=(source.folder,), progress=progress)
    typer.echo(
        f"{output}: {source.kind}, {len(source.adapter.matrices)} linears, merged into the attention of {record.num_hidden_layers} layers"
    )
    typer.echo("the attention alone, as the tensors of torch.nn.MultiheadAttention; every other weight is the base's")
    for line in source.left_out:
        typer.echo(f"left out: {line}")


def remarks(source: Source, merged: Merged) -> list[str]:
    """What a user must know of a merged model; all of it is in merge_manifest.json, too."""
    adapter, manifest = source.adapter, merged.manifest
    said = [f"{merged.changed:,} of {merged.values:,} values of these weights differ from the base's; they are float32 now"]
    if adapter.quant is not None and adapter.quant.base_quant == "nf4":
        said.append(
            "merged onto the base's original weights; the adapter was trained on their NF4 values, so that this is another model than the "
            "one that was trained"
        )
    elif adapter.quant is None:
        said.append("merged onto the base's original weights; the adapter does not say whether it was trained on their NF4 values")
    if manifest.untied_head:
        said.append("the head was tied to the embedding, and has a weight of its own now")
    if not manifest.claims_full_attention_fidelity:
        said.append("the adapter is not known to be trained on the full graph: merge_manifest.json claims no full attention fidelity")
    return said + [f"left out: {one}" for one in source.left_out]
