"""`parity run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import UserError
from parity.commands.options import devices, failures_folder, require_profile, require_questions, require_writable, words

if TYPE_CHECKING:
    from parity.options import ContractOptions, Options
    from parity.report.record import Run

OF_THE_RUN = ("tier", "only", "stacks", "device", "profile", "seed", "mutant", "model", "contract", "preset", "overrides")
"""What a rerun takes from the run that it asks again."""


def run(
    context: typer.Context,
    tier: Annotated[str, typer.Option(help="Tiers, comma-separated (A,B); all unless given, none with --contract.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="A check's id; repeatable.", metavar="CHECK")] = None,
    stacks: Annotated[str, typer.Option(help="Stacks, comma-separated; all that are known unless given.")] = "",
    device: Annotated[list[str] | None, typer.Option(help="STACK=DEVICE; repeatable.", metavar="STACK=DEVICE")] = None,
    contract: Annotated[Path | None, typer.Option(help="Gates this run of yours (c.run, d.run) on the stacks that take it.")] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Under the contract, as of finetune.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the contract; repeatable.")] = None,
    model: Annotated[
        str, typer.Option(help="Tier C's checkpoint, or the contract's: a known name, a hub id, or a folder.")
    ] = "smollm2-135m",
    profile: Annotated[str, typer.Option(help="How much to draw: quick, ci or nightly.")] = "ci",
    seed: Annotated[int | None, typer.Option(help="Draws the same inputs again.", min=0)] = None,
    time_budget: Annotated[float | None, typer.Option(help="Seconds; what was not covered then is said, and is exit 4.", min=0)] = None,
    mutant: Annotated[list[str] | None, typer.Option(help="Plants a known bug first, to see the gate go red; repeatable.")] = None,
    allow_uncovered: Annotated[
        list[str] | None, typer.Option(metavar="QUESTION", help="Accepts that a question is not covered; repeatable.")
    ] = None,
    waivers: Annotated[Path | None, typer.Option(help="The accepted failures; waivers.toml, where it is there, unless given.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Sets of workers at once; as many as cores and memory allow unless given.", min=1)
    ] = None,
    rerun_failed: Annotated[bool, typer.Option("--rerun-failed", help="Asks what was not green in this folder's last run.")] = False,
    from_: Annotated[Path | None, typer.Option("--from", help="With --rerun-failed: the run of this record (--json).")] = None,
    reproducers: Annotated[
        Path | None, typer.Option(help="Folder for the files of failures (parity replay); in the user's cache unless given.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Writes the record as JSON (docs/run.schema.json).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Writes JUnit XML.")] = None,
) -> None:
    """Runs the gate.

    Exit codes: 0 pass; 1 divergence; 2 usage; 3 a worker died, hung or broke the protocol, or a check reached no
    verdict; 4 something asked for is missing, skipped or not covered; 5 environment unfit. Of several, the first in
    the order 2, 5, 1, 3, 4.
    """
    from parity import rerunning, session
    from parity.jobs import usual
    from parity.judge.waivers import FILE
    from parity.mutants import planting
    from parity.options import Options
    from parity.report import terminal

    sources = {name: context.get_parameter_source(name) for name in OF_THE_RUN}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    require_profile(profile)
    require_questions(allow_uncovered or ())
    if waivers is not None and not waivers.is_file():
        raise UserError(f"--waivers is {waivers}, which is no file; give one, or leave it out")
    options = Options(
        tiers=words(tier), checks=tuple(only or ()), stacks=words(stacks), devices=devices(device or []), profile=profile, seed=seed,
        time_budget=time_budget, mutants=tuple(mutant or ()), model=model, reproducers=failures_folder(reproducers),
        contract=_contract(contract, preset, overrides or (), model if "model" in given else None),
        allow_uncovered=tuple(allow_uncovered or ()), waiver_file=waivers or FILE, jobs=jobs or usual(),
    )  # fmt: skip
    if from_ is not None and not rerun_failed:
        raise UserError("--from names the run that --rerun-failed asks again; add --rerun-failed")
    if rerun_failed:
        options = rerunning.options(from_, given=options, named=[_flag(name) for name in given])
    require_writable(json, junit)
    planting.begin_anew(options.mutants)
    with terminal.progress() as progress:
        result = session.run(options, progress)
    _report(result, options, json, junit)
    raise typer.Exit(result.exit_code)


def _flag(name: str) -> str:
    return "--set" if name == "overrides" else f"--{name.replace('_', '-')}"


def _contract(file: Path | None, preset: str | None, overrides: list[str] | tuple[()], model: str | None) -> ContractOptions | None:
    from parity.options import ContractOptions

    if file is None:
        if preset is not None or overrides:
            raise UserError("--preset and --set change a contract, and none is given; add --contract run.yaml")
        return None
    return ContractOptions(file=file, preset=preset, settings=tuple(overrides), model=model)


def _report(run: Run, options: Options, json: Path | None, junit: Path | None) -> None:
    """Files first, then the terminal; what serves --rerun-failed alone is kept if it can be."""
    from parity import rerunning
    from parity.report import junit as junit_report
    from parity.report import record, table, terminal

    if json is not None:
        record.write(run, json)
    if junit is not None:
        junit_report.write(run, junit)
    try:
        rerunning.keep(run)
    except OSError as error:
        print(f"parity: this run can't be kept for --rerun-failed ({error.strerror}: {error.filename})", file=sys.stderr)
    with terminal.despite_a_closed_pipe():
        if options.rerun is not None:
            again = f"{len(options.rerun.cells)} cells of the run of {options.rerun.started} ({options.rerun.record}) again"
            terminal.console().print(f"{again}; what was green there was not asked", markup=False, soft_wrap=True)
        table.show(run, terminal.console())
