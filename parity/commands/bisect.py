"""`parity bisect`."""

from __future__ import annotations

from typing import Annotated

import typer

from parity.commands.options import devices, require_profile, words


def bisect(
    check: Annotated[str, typer.Argument(help="A check of tier C, as c.model or c.llama.")],
    question: Annotated[str, typer.Option(help="same_function, precision or fast_path.")] = "same_function",
    stacks: Annotated[str, typer.Option(help="Stacks, comma-separated; all that are known unless given.")] = "",
    device: Annotated[list[str] | None, typer.Option(help="STACK=DEVICE; repeatable.", metavar="STACK=DEVICE")] = None,
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "quick",
    seed: Annotated[int | None, typer.Option(help="Draws the inputs of that run.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="c.model's checkpoint: a known name, a hub id, or a folder.")] = "smollm2-135m",
) -> None:
    """Names every operation that is wrong on the reference's inputs, section by section; memory for one section at a time.

    Exit codes: 0 none is; 1 some are; others as of `parity run`.
    """
    from parity import bisection
    from parity.mutants import planting
    from parity.options import Options
    from parity.report import graphs, terminal

    require_profile(profile)
    options = Options(
        checks=(check,), stacks=words(stacks), devices=devices(device or []), profile=profile, seed=seed,
        mutants=tuple(mutant or ()), model=model,
    )  # fmt: skip
    planting.begin_anew(options.mutants)
    with terminal.progress() as progress:
        found = bisection.run(options, question, progress)
    with terminal.despite_a_closed_pipe():
        graphs.show_faults(found, terminal.console())
    raise typer.Exit(int(any(faults for _, _, faults in found)))
