"""`parity scorecard`: verify, run, report, rescore, training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parity.commands.options import require_writable

if TYPE_CHECKING:
    from parity.scorecard.report import Report
    from parity.scorecard.runner_whole import Ended

UNFINISHED = 4

app = typer.Typer(no_args_is_help=True, help="How well does what each stack trained do a suite of tasks?")

Spec = Annotated[Path, typer.Argument(help="A scorecard's spec, YAML (docs/scorecard.schema.json).", metavar="SPEC")]
Folder = Annotated[Path, typer.Argument(help="What parity scorecard run wrote.", metavar="DIR")]


@app.command()
def verify(spec: Spec) -> None:
    """Reads a spec and judges its tasks' references, which must pass. Asks nobody."""
    from parity.report import terminal
    from parity.scorecard.runner_whole import judging
    from parity.scorecard.spec_source import read_scorecard
    from parity.scorecard.task_canaries import require_sound

    scorecard = read_scorecard(spec)
    with terminal.progress() as progress, judging(scorecard) as judges:
        progress.doing("references")
        progress.total(len(scorecard.tasks))
        require_sound(scorecard.tasks, judges, progress.step)
    families = len({task.family for task in scorecard.tasks})
    typer.echo(f"{len(scorecard.tasks)} tasks in {families} families; every reference passes, and no answer that says nothing does")
    typer.echo(f"suite.sha256: {scorecard.suite_sha256}")


@app.command()
def run(
    spec: Spec,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run goes; one that was broken off goes on.")],
    cycle: Annotated[str, typer.Option(metavar="NAME", help="Which cycle of evidence this is.")] = "1",
) -> None:
    """Asks every condition every task for every seed, judges the answers. 0: all done; 4: attempts were lost, or a budget spent."""
    from contract.errors import Interrupted
    from parity.report import terminal
    from parity.scorecard.runner_whole import run_whole

    try:
        with terminal.progress() as progress:
            ended = run_whole(spec, out, cycle=cycle, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; what was answered is in {out}: the same command goes on from there") from None
    _show(out)
    _tell(ended, out)


@app.command()
def report(
    folder: Folder,
    rescored: Annotated[bool, typer.Option("--rescored", help="Of the answers as rescore judged them.")] = False,
    json: Annotated[Path | None, typer.Option(help="Writes it as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Writes it as Markdown.")] = None,
) -> None:
    """Shows what a run came to."""
    from contract.worker.files import replacing
    from parity.scorecard.report_table import markdown as as_markdown

    require_writable(json, markdown)
    found = _show(folder, rescored=rescored)
    for path, text in ((json, found.model_dump_json(indent=2) + "\n"), (markdown, as_markdown(found))):
        if path is not None:
            with replacing(path) as file:
                file.write(text.encode())


@app.command()
def rescore(folder: Folder) -> None:
    """Judges a run's answers anew, into rescored.jsonl. Generates nothing."""
    from parity.report import terminal
    from parity.scorecard.runner_folder import read_run
    from parity.scorecard.runner_rescore import rescore as judge_again
    from parity.scorecard.runner_whole import judging

    _, scorecard = read_run(folder)
    with terminal.progress() as progress, judging(scorecard) as judges:
        found = judge_again(folder, judges, progress)
    _show(folder, rescored=True)
    typer.echo(f"{found.answers} answers judged anew, {found.changed} otherwise than before, {found.left_out} left out")
    if found.wanting:
        typer.echo(f"{found.wanting} episodes ended with an answer that now fails; repairs of it were never asked for")


@app.command()
def cycle(
    folder: Folder,
    gate: Annotated[Path | None, typer.Option(metavar="FILE", help="What parity run --contract --json wrote for the candidate.")] = None,
) -> None:
    """Writes a run's comparison as a cycle of evidence, cycle.json and outcomes.jsonl beside its log, for parity promote."""
    from parity.scorecard.cycle_file import CYCLE, write_cycle
    from parity.scorecard.report_cycle import cycle_of

    found = cycle_of(folder, gate=gate)
    write_cycle(folder, found)
    typer.echo(f"{folder / CYCLE}: cycle {found.name}, {len(found.tasks)} tasks, {', '.join(found.lanes())}")


@app.command()
def training(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSONL, as data.train_file of a contract.")],
    suite: Annotated[str, typer.Option(metavar="NAME", help="text_to_sql")] = "text_to_sql",
    pairs: Annotated[int, typer.Option(metavar="N", min=1, help="Pairs of prompt and response.")] = 2400,
) -> None:
    """Writes the training set of a suite: no prompt and no query of it is in the suite."""
    from contract.worker.files import replacing
    from parity.scorecard.suite import training_of

    require_writable(out)
    rows = training_of(suite, pairs)
    with replacing(out) as file:
        file.write(rows)
    typer.echo(f"{out}: {rows.count(10):,} pairs")


def _show(folder: Path, *, rescored: bool = False) -> Report:
    from parity.report import terminal
    from parity.scorecard.report import report_of
    from parity.scorecard.report_table import show

    found = report_of(folder, rescored=rescored)
    with terminal.despite_a_closed_pipe():
        show(found, terminal.console())
    return found


def _tell(ended: Ended, out: Path) -> None:
    if ended.spent:
        typer.echo(f"parity: ended early, {ended.spent}; raise the budget and give the same command to go on", err=True)
    elif ended.unfinished:
        typer.echo(f"parity: {ended.unfinished} episodes were lost to infra errors; the same command asks them again", err=True)
    if ended.spent or ended.unfinished:
        raise typer.Exit(UNFINISHED)
