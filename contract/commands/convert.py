"""`finetune convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A v2, v3 or PEFT adapter, or a training checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder that is new or empty.")],
    to: Annotated[Literal["v2", "v3", "peft"], typer.Option("--to", help="The format to write.")],
    base: Annotated[str | None, typer.Option(metavar="BASE", help="The base model, for what the source does not say of it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that is there.")] = False,
) -> None:
    """Writes an adapter in another format, and says what that one can't hold."""
    from contract.artifacts import convert as conversion
    from contract.model import folder

    located = None if base is None else folder.locate(base, place="--base")
    done = conversion.convert(source, target, to, base=located, force=force)
    typer.echo(f"{target}: {done.source} as {to}, {done.linears} linears")
    for line in done.lost:
        typer.echo(f"left out: {line}")
