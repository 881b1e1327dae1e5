"""A campaign of mutants on the terminal: each mutant, then what stands between it and green, then the totals."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parity.mutants.verdicts import Verdict
from parity.report.mutants import Campaign, MutantResult, Totals

STYLES = {
    Verdict.KILLED: "green", Verdict.SURVIVED: "bold red", Verdict.CRASHED: "bold magenta", Verdict.HUNG: "bold magenta",
    Verdict.STALE: "bold yellow",
}  # fmt: skip


def show(campaign: Campaign, console: Console) -> None:
    """Prints a campaign."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("mutant", "verdict", "killed by", "first tap"):
        table.add_column(column, overflow="fold")
    for column in ("n", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in campaign.mutants:
        verdict, numbers = Text(one.verdict, style=STYLES[one.verdict]), (str(one.examples or ""), f"{one.seconds:.1f}")
        table.add_row(one.name, verdict, one.killed_by, Text(_tap(one)), *numbers)
    console.print(table)
    for one in campaign.mutants:
        if one.verdict is not Verdict.KILLED:
            console.print(f"\n[bold]{escape(one.name)}[/] [{STYLES[one.verdict]}]{one.verdict}[/]: {escape(one.what)}")
            console.print(Text(f"  {one.reason}"))
        elif one.where is not None and not one.where.exact:
            console.print(f"\n[bold]{escape(one.name)}[/] [yellow]not localised[/]: {escape(_missed(one))}")
    for check, why in campaign.red_without.items():
        console.print(Text(f"\n{check} is red without any mutant, so nothing that it says counts: {why}", style="bold red"))
    console.print(_verdict(campaign))


def _tap(one: MutantResult) -> str:
    return one.first_tap if one.where is None or one.where.exact else f"{one.first_tap} (not exact)"


def _missed(one: MutantResult) -> str:
    assert one.where is not None
    where = one.where
    at = f" first in {where.expected_block}" if where.expected_block else ""
    named = f"{', '.join(where.found) or 'nothing'} first in {where.found_block or 'no block'}"
    return f"bisect named {named}; it is {', '.join(where.expected)}{at}"


def _verdict(campaign: Campaign) -> Text:
    counts = {name: getattr(campaign.totals, name) for name in Totals.model_fields}
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count or name == "survived")
    place = campaign.localised
    at = f"; {place.exact} of {place.graph_mutants} in graphs named at the exact operation and block" if place.graph_mutants else ""
    style = "bold green" if campaign.exit_code == 0 else "bold red"
    return Text.assemble(
        ("\nALL KILLED" if campaign.exit_code == 0 else "\nNOT ALL KILLED", style),
        f"  {told}{at}; {campaign.wall:.0f} s, {campaign.cpu:.0f} s of processors; seed {campaign.seed}; exit {campaign.exit_code}",
    )
