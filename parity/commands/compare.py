"""`parity compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import require_writable


def compare(
    folders: Annotated[list[Path], typer.Argument(help="What parity capture wrote, a folder for each stack.", metavar="DIR...")],
    json: Annotated[Path | None, typer.Option(help="Writes the record as JSON (docs/run.schema.json).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Writes JUnit XML.")] = None,
) -> None:
    """Judges captures as a run on their stacks would be: the same table, verdicts and exit codes. No stack needs to be installed here.

    What a capture lacks, or was asked on other inputs, is not covered (4).
    """
    from parity.capture import judged
    from parity.report import captures, record, table, terminal
    from parity.report import junit as junit_report

    require_writable(json, junit)
    with terminal.progress() as progress:
        result = judged.judge(folders, progress)
    if json is not None:
        record.write(result, json)
    if junit is not None:
        junit_report.write(result, junit)
    with terminal.despite_a_closed_pipe():
        table.show(result, terminal.console())
        captures.show_judged(result, terminal.console())
    raise typer.Exit(result.exit_code)
