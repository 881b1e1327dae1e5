"""`parity mutate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import require_profile, require_writable, words


def mutate(
    count: Annotated[int, typer.Option(help="So many mutants at least: the same number of each file of the stacks.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Draws the same mutants again.", min=0)] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 1,
    profile: Annotated[str, typer.Option(help="How much the checks draw: quick, ci or nightly.")] = "quick",
    check: Annotated[str, typer.Option(help="Asks these checks alone: ids or how they begin, comma-separated (a.,b.nest).")] = "",
    only: Annotated[str, typer.Option(help="Of the drawn ones, those whose name has one of these in it, comma-separated.")] = "",
    json: Annotated[Path | None, typer.Option(help="Writes every mutant as JSON.")] = None,
    state: Annotated[Path | None, typer.Option(help="File of what is known already; in the user's cache unless given.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forgets what is known, and asks all again.")] = False,
) -> None:
    """Makes small changes in the stacks' own source, one at a time, and shows which the gate sees.

    Exit codes: 0 each survivor is explained (parity/mutants/generic/survivors.toml); 1 one is not, or a mutant hung; 2 usage; 130
    interrupted (the same command then goes on).
    """
    from contract.errors import UserError
    from parity.mutants.generic import campaign, drawing, record
    from parity.report import terminal

    require_profile(profile)
    require_writable(json)
    drawn, wanted = drawing.draw(drawing.sources(), count, seed), words(only)
    places = [place for place in drawn if not wanted or any(word in place.name for word in wanted)]
    if not places:
        raise UserError(f"--only is {only!r}, which no drawn mutant has in its name; draw more with --count, or leave it out")
    settings = campaign.Settings(profile=profile, checks=words(check), jobs=jobs, state=state or campaign.Settings().state, fresh=fresh)
    with terminal.progress() as progress:
        found, outcomes = campaign.ask(places, settings, progress)
    result = record.of(outcomes, found, settings, seed)
    if json is not None:
        record.write(result, json)
    with terminal.despite_a_closed_pipe():
        for line in record.lines(result):
            terminal.console().print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(result.exit_code)
