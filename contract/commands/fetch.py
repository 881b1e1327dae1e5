"""`finetune fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.commands.progress import progress_bars


def fetch(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A known name (smollm2-135m), or a hub id (OWNER/NAME).")],
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it goes; else the user's cache.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of a known model that is here already.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again, and replace what is there.")] = False,
) -> None:
    """Brings a model here: weights, configuration, tokenizer."""
    from contract.model import zoo

    if revision is not None and not zoo.is_hub_id(name):
        raise typer.BadParameter(f"--revision goes with a hub id (OWNER/NAME); {name} has none")
    if verify and zoo.is_hub_id(name):
        raise typer.BadParameter(f"--verify goes with a known name ({', '.join(zoo.KNOWN)}); fetch {name} again with --force")
    try:
        with progress_bars() as progress:
            fetched = zoo.fetch(name, revision=revision, folder=folder, force=force, verify=verify, progress=progress)
    except zoo.Refused as error:
        raise typer.BadParameter(str(error)) from None
    seconds = fetched.download_seconds + fetched.convert_seconds
    took = f" (download {fetched.download_seconds:.1f} s, conversion {fetched.convert_seconds:.1f} s)" if seconds else ""
    typer.echo(f"{name} is in {fetched.path}{took}")
