"""`parity promote` on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.errors import printable
from parity.options import Progress
from parity.scorecard.cycle import Cycle
from parity.scorecard.cycle_file import read_cycle
from parity.scorecard.promotion_verdict import POOLED, Verdict

_STYLES = {"PROMOTE": "bold green", "REJECT": "bold red", "HOLD": "bold yellow", "INVALID": "bold magenta"}


def read(folders: Sequence[Path], progress: Progress) -> list[Cycle]:
    """Reads the cycles, one after the other."""
    progress.total(len(folders))
    cycles = []
    for folder in folders:
        progress.doing(f"reading {folder.name}")
        cycles.append(read_cycle(folder))
        progress.step()
    progress.doing("judging")
    return cycles


def show(verdict: Verdict, written: Path | None, console: Console) -> None:
    """Prints the pooled deltas, the reasons, the answers to the two questions, and the decision."""
    if verdict.measured:
        console.print(_table(verdict))
    for reason in verdict.reasons:
        console.print(Text(f"  {printable(reason)}"), soft_wrap=True)
    if verdict.questions is not None:
        for asked, yes, why in (
            ("the production lane is at a plateau", verdict.questions.plateau, verdict.questions.plateau_why),
            ("the candidate wins decisively", verdict.questions.decisive, verdict.questions.decisive_why),
        ):
            console.print(Text(f"{asked}: {'yes' if yes else 'no'} ({why})"), soft_wrap=True)
    if written is not None:
        console.print(Text(f"wrote {printable(str(written))}"), soft_wrap=True)
    console.print(Text(verdict.decision, style=_STYLES[verdict.decision]))


def _table(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("metric", "baseline", "candidate", "loss", "at most", "margin", "within"):
        table.add_column(column, no_wrap=True, justify="left" if column == "metric" else "right")
    for one in verdict.measured:
        if one.scope == POOLED:
            margin = "-" if one.margin is None else f"{one.margin}"
            within = "-" if one.passed is None else "yes" if one.passed else "no"
            table.add_row(
                one.metric, f"{one.baseline:.4f}", f"{one.candidate:.4f}", f"{one.loss:+.4f}", f"{one.upper:+.4f}", margin, within
            )  # fmt: skip
    return table
