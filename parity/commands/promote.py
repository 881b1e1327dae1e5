"""`parity promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import require_writable


def promote(
    cycles: Annotated[list[Path], typer.Argument(help="The folders of scorecard cycles, two at least.", metavar="CYCLE...")],
    rule: Annotated[Path | None, typer.Option(help="The rule; the shipped promotion.yaml unless given.")] = None,
    promotions: Annotated[Path, typer.Option(help="Folder of promotion records, where the planner looks.")] = Path("promotions"),
    json: Annotated[Path | None, typer.Option(help="Writes the verdict as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Writes JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Writes the whole report as Markdown.")] = None,
) -> None:
    """Decides whether the research stack may go to production: PROMOTE (0), REJECT (10), HOLD (11), INVALID (12).

    A PROMOTE writes the record that the planner asks for. The same cycles give the same verdict.
    """
    from parity.report import terminal
    from parity.scorecard import (
        promotion,
        promotion_junit,
        promotion_markdown,
        promotion_record,
        promotion_rule,
        promotion_terminal,
        promotion_verdict,
    )

    require_writable(json, junit, markdown)
    asked = promotion_rule.read_rule() if rule is None else promotion_rule.read_rule(rule)
    with terminal.progress() as progress:
        verdict = promotion.judge(promotion_terminal.read(cycles, progress), asked)
    if json is not None:
        promotion_verdict.write(verdict, json)
    if junit is not None:
        promotion_junit.write(verdict, junit)
    if markdown is not None:
        promotion_markdown.write(verdict, markdown)
    written = promotion_record.record(verdict, promotions)
    with terminal.despite_a_closed_pipe():
        promotion_terminal.show(verdict, written, terminal.console())
    raise typer.Exit(verdict.exit_code)
