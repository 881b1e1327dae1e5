"""`parity capture`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import Interrupted
from parity.commands.options import require_profile, words


def capture(
    stack: Annotated[str, typer.Option(help="The stack that is asked.")],
    out: Annotated[Path, typer.Option(help="A folder that is not there yet, or the one of an interrupted capture, to go on.")],
    tier: Annotated[str, typer.Option(help="Tiers, comma-separated (A,B); all unless given.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="A check's id; repeatable.", metavar="CHECK")] = None,
    device: Annotated[str, typer.Option(help="The stack's device; its default unless given.")] = "",
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "ci",
    seed: Annotated[int | None, typer.Option(help="Draws the same inputs again.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Tier C's checkpoint: a known name, a hub id, or a folder.")] = "smollm2-135m",
) -> None:
    """Asks one stack all that a run would, and writes down its answers; parity compare judges them, also on another machine.

    Exit codes: 0 everything was answered; 3 a worker failed, or a request has an error for an answer (both are written down); 4 something
    asked for is missing; others as of `parity run`.
    """
    from parity.capture import take
    from parity.mutants import planting
    from parity.options import Options
    from parity.report import captures, terminal

    require_profile(profile)
    options = Options(
        tiers=words(tier), checks=tuple(only or ()), stacks=(stack,), devices={stack: device} if device else {}, profile=profile, seed=seed,
        mutants=tuple(mutant or ()), model=model,
    )  # fmt: skip
    planting.begin_anew(options.mutants)
    with terminal.progress() as progress:
        try:
            taken = take.take(options, out, progress)
        except KeyboardInterrupt:
            raise Interrupted("interrupted before a request was sent; what was there is whole; the same command goes on") from None
    with terminal.despite_a_closed_pipe():
        captures.show_taken(taken, out, terminal.console())
    raise typer.Exit(taken.exit_code)
