"""`parity compare-env`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import devices, require_profile, require_writable, words


def compare_env(
    old: Annotated[str, typer.Argument(help="A virtual environment, its Python, or a stack of parity.toml.")],
    new: Annotated[str, typer.Argument(help="Another.")],
    stack: Annotated[str, typer.Option(help="Stacks, comma-separated; all that either environment has unless given.")] = "",
    tier: Annotated[str, typer.Option(help="Tiers, comma-separated (A,B); all unless given.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="A check's id; repeatable.", metavar="CHECK")] = None,
    device: Annotated[list[str] | None, typer.Option(help="STACK=DEVICE; repeatable.", metavar="STACK=DEVICE")] = None,
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "quick",
    seed: Annotated[int | None, typer.Option(help="Draws the inputs of that run.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first, in both; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Tier C's checkpoint: a known name, a hub id, or a folder.")] = "smollm2-135m",
    json: Annotated[Path | None, typer.Option(help="Writes the differences as JSON.")] = None,
) -> None:
    """Says what an upgrade of torch, bitsandbytes or tinygrad changes: versions, known defects, verdicts, and the answers' bits.

    Exit codes: 0 nothing is worse; 1 a verdict is worse, or a known defect appears; others as of `parity run`.
    """
    from parity.capture import environments
    from parity.mutants import planting
    from parity.options import Options
    from parity.report import captures, terminal

    require_profile(profile)
    require_writable(json)
    options = Options(
        tiers=words(tier), checks=tuple(only or ()), stacks=words(stack), devices=devices(device or []), profile=profile, seed=seed,
        mutants=tuple(mutant or ()), model=model,
    )  # fmt: skip
    planting.begin_anew(options.mutants)
    with terminal.progress() as progress:
        found = environments.compare(old, new, options, progress)
    if json is not None:
        captures.write(found, json)
    with terminal.despite_a_closed_pipe():
        captures.show_upgrade(found, terminal.console())
    raise typer.Exit(found.exit_code)
