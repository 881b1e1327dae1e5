"""`parity replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import devices, words


def replay(
    files: Annotated[list[Path], typer.Argument(help="Files that parity run wrote.", metavar="FILE...")],
    stacks: Annotated[str, typer.Option(help="The stacks to ask; those of the file that are installed unless given.")] = "",
    device: Annotated[
        list[str] | None, typer.Option(help="STACK=DEVICE, in place of the file's; repeatable.", metavar="STACK=DEVICE")
    ] = None,
    model: Annotated[str, typer.Option(help="The checkpoint that the file needs, where it is a folder that lies elsewhere here.")] = "",
    no_mutants: Annotated[bool, typer.Option("--no-mutants", help="Without the bugs that the run had planted.")] = False,
) -> None:
    """Asks stored failures again; a stack that is not installed answers from the file, and so does one that --stacks leaves out.

    Exit codes: 0 all pass now; 1 one fails as stored; 2 usage, or no file that this version can ask; 3 one fails otherwise, or a
    worker failed; 4 a stack, device or checkpoint that is needed is missing; 5 environment unfit. Of several, the first in the order
    2, 5, 1, 3, 4.
    """
    from parity.commands.exits import Exits
    from parity.find import replay as replaying
    from parity.report import replayed, terminal

    options = replaying.Options(stacks=words(stacks), devices=devices(device or []), model=model, planted=not no_mutants)
    exits = Exits()
    with replaying.Workers() as running, terminal.despite_a_closed_pipe():
        for file in files:
            with exits.told(), terminal.progress() as progress:
                found = replaying.replay(file, options, running, progress.doing)
                exits.add(found.exit_code)
                replayed.show(found, terminal.console())
    raise typer.Exit(exits.code)
