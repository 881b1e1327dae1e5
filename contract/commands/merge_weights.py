"""`finetune merge-weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def merge_weights(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A training checkpoint: its folder, or its JSON file.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model: a known name, a folder, or a hub id that was fetched.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder that is new or empty.")],
    layout: Annotated[
        Literal["hf", "static"], typer.Option(help="static: attention alone, as plain multi-head attention; no model with RoPE.")
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier merge left there.")] = False,
) -> None:
    """Merges a training checkpoint's adapter into its base: the same bytes as merge-qlora gives for the same adapter."""
    from contract.artifacts.convert import read_source
    from contract.artifacts.kinds import ADAPTERS, Kind, what_is
    from contract.commands.merge_report import command_line, merge_and_tell, merge_static_and_tell
    from contract.errors import ContractError

    kind, _ = what_is(checkpoint)
    if kind != Kind.TRAINING_CHECKPOINT:
        other = command_line("merge-qlora", checkpoint, base, output, force=force)
        remedy = f"run: {other}" if kind in ADAPTERS else "give a training checkpoint"
        raise ContractError(str(checkpoint), got=kind, allowed=Kind.TRAINING_CHECKPOINT, remedy=remedy)
    merge = merge_and_tell if layout == "hf" else merge_static_and_tell
    merge(read_source(checkpoint), base, output, force=force)
