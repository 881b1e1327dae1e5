"""The `finetune` command.

Exit codes: 0 done, 1 failed, 2 usage or refused, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from contract.errors import UserError

app = typer.Typer(name="finetune", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _finetune() -> None:
    """Fine-tunes language models, on either of two stacks that are held against each other."""


@app.command()
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
        with _progress() as progress:
            fetched = zoo.fetch(name, revision=revision, folder=folder, force=force, verify=verify, progress=progress)
    except zoo.Refused as error:
        raise typer.BadParameter(str(error)) from None
    seconds = fetched.download_seconds + fetched.convert_seconds
    took = f" (download {fetched.download_seconds:.1f} s, conversion {fetched.convert_seconds:.1f} s)" if seconds else ""
    typer.echo(f"{name} is in {fetched.path}{took}")


def main() -> None:
    """The console script: a UserError is one line on standard error."""
    try:
        app()
    except UserError as error:
        print(f"finetune: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"finetune: {error.filename or 'output'}: {error.strerror or error}; check its folder, rights and space", file=sys.stderr)
        sys.exit(1)
    except SystemExit as exit_:
        if exit_.code == 130:
            print("finetune: interrupted; the same command starts it again", file=sys.stderr)
        raise


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left for each stage, on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, disable=not console.is_terminal)

    def report(stage: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
