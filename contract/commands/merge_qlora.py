"""`finetune merge-qlora`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge_qlora(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="A v2, v3 or PEFT adapter: its folder, or the file that describes it.")
    ],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model: a known name, a folder, or a hub id that was fetched.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder that is new or empty.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a merged model that is there.")] = False,
) -> None:
    """Merges an adapter into its base: the same bytes each time, float32 where it changes a weight."""
    from contract.artifacts.convert import read_source
    from contract.artifacts.kinds import ADAPTERS, Kind, what_is
    from contract.commands.merge_report import command_line, merge_and_tell
    from contract.errors import ContractError

    kind, _ = what_is(adapter)
    if kind not in ADAPTERS:
        other = command_line("merge-weights", adapter, base, output, force=force)
        remedy = f"run: {other}" if kind == Kind.TRAINING_CHECKPOINT else "give an adapter"
        raise ContractError(str(adapter), got=kind, allowed=", ".join(ADAPTERS), remedy=remedy)
    merge_and_tell(read_source(adapter), base, output, force=force)
