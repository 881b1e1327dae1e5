"""`parity mutants`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import UserError
from parity.commands.options import require_profile, require_writable, words


def mutants(
    only: Annotated[
        list[str] | None, typer.Option(help="Mutants, comma-separated, FILE.toml#NAME too; repeatable.", metavar="NAME")
    ] = None,
    tier: Annotated[str, typer.Option(help="Mutants whose own check is of these tiers, comma-separated (A,B).")] = "",
    jobs: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 1,
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "quick",
    sample: Annotated[bool, typer.Option("--sample", help="A fixed choice of some 20, spread over tiers, stacks and areas.")] = False,
    until: Annotated[
        str, typer.Option(help="own: its own check; killed: the others too, until one kills it; every: all checks.")
    ] = "killed",
    json: Annotated[Path | None, typer.Option(help="Writes the record as JSON (docs/mutants.schema.json).")] = None,
    html: Annotated[Path | None, typer.Option(help="Writes the matrix, mutant x check, as one HTML file.")] = None,
    state: Annotated[Path | None, typer.Option(help="File of what is known already; in the user's cache unless given.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forgets what is known, and asks all again.")] = False,
) -> None:
    """Plants known bugs, one at a time, and shows which check sees each.

    Exit codes: 0 all were killed; 1 one survived, crashed, hung or is stale, or a check is red without any; 2 usage; 130 interrupted (the
    same command then goes on).
    """
    from parity.mutants import campaign, stages, whole
    from parity.report import mutants as report
    from parity.report import mutants_html, mutants_table, terminal

    require_profile(profile)
    if until not in stages.UNTIL:
        raise UserError(f"--until is {until!r}; allowed: {', '.join(stages.UNTIL)}")
    names = tuple(name for text in only or () for name in words(text))
    chosen = whole.choose(names, words(tier), sampled=sample)
    require_writable(json, html)
    settings = campaign.Settings(profile=profile, jobs=jobs, until=until, state=state or campaign.state_file(), fresh=fresh)
    with terminal.progress() as progress:
        result = whole.run(chosen, settings, _selection(names, tier, sample), progress)
    if json is not None:
        report.write(result, json)
    if html is not None:
        mutants_html.write(result, html)
    with terminal.despite_a_closed_pipe():
        mutants_table.show(result, terminal.console())
    raise typer.Exit(result.exit_code)


def _selection(names: tuple[str, ...], tier: str, sample: bool) -> str:
    """The flags that chose mutants."""
    of_names = [f"--only {','.join(names)}"] if names else []
    return " ".join([*of_names, *([f"--tier {tier}"] if tier else []), *(["--sample"] if sample else [])])
