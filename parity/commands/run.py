"""`parity run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import UserError
from parity.commands.options import devices, require_writable, words


def run(
    tier: Annotated[str, typer.Option(help="Tiers, comma-separated (A,B); all unless given.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="A check's id; repeatable.", metavar="CHECK")] = None,
    stacks: Annotated[str, typer.Option(help="Stacks, comma-separated; all that are known unless given.")] = "",
    device: Annotated[list[str] | None, typer.Option(help="STACK=DEVICE; repeatable.", metavar="STACK=DEVICE")] = None,
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "ci",
    seed: Annotated[int | None, typer.Option(help="Draws the same inputs again.", min=0)] = None,
    time_budget: Annotated[float | None, typer.Option(help="Seconds; what was not covered then is said, and is exit 4.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first, to see the gate go red; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Tier C's checkpoint: a known name, a hub id, or a folder.")] = "smollm2-135m",
    json: Annotated[Path | None, typer.Option(help="Writes the record as JSON (docs/run.schema.json).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Writes JUnit XML.")] = None,
) -> None:
    """Runs the gate.

    Exit codes: 0 pass; 1 divergence; 2 usage; 3 a worker died, hung or broke the protocol, or a check reached no
    verdict; 4 something asked for is missing, skipped or not covered; 5 environment unfit. Of several, the first in
    the order 2, 5, 1, 3, 4.
    """
    from parity import profiles, session
    from parity.options import Options
    from parity.report import junit as junit_report
    from parity.report import record, table, terminal

    if profile not in profiles.PROFILES:
        raise UserError(f"there is no profile {profile!r}; allowed: {', '.join(profiles.PROFILES)}")
    options = Options(
        tiers=words(tier), checks=tuple(only or ()), stacks=words(stacks), devices=devices(device or []), profile=profile, seed=seed,
        time_budget=time_budget, mutants=tuple(mutant or ()), model=model,
    )  # fmt: skip
    require_writable(json, junit)
    with terminal.progress() as progress:
        result = session.run(options, progress)
    if json is not None:
        record.write(result, json)
    if junit is not None:
        junit_report.write(result, junit)
    with terminal.despite_a_closed_pipe():
        table.show(result, terminal.console())
    raise typer.Exit(result.exit_code)
