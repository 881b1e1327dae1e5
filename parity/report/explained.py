"""A check, explained on the terminal; and the list of all."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.checks.check import Check, Question
from parity.explanation import MEANING, Explanation
from parity.mutants.catalogue import Mutant


def show(one: Explanation, console: Console) -> None:
    """Prints it."""
    for line in _lines(one):
        console.print(line, soft_wrap=True)


def listed(checks: Iterable[Check], console: Console) -> None:
    """Prints every check: its id and what it is about."""
    table = Table("check", "about", box=None, pad_edge=False, header_style="bold")
    for check in checks:
        table.add_row(check.id, Text(check.title))
    console.print(table)
    console.print(Text("\nOne of them: parity explain CHECK"))


def _lines(one: Explanation) -> list[Text]:
    check = one.check
    lines = [Text.assemble((check.id, "bold"), f": {check.title} (tier {check.tier})")]
    lines += [Text(f"  {formula}") for formula in one.formulas]
    for question in Question:
        lines += _question(one, question)
    lines += [
        _head("Bound"),
        Text(f"  {one.bound}"),
        Text(f"  {one.theory}"),
        _head("What usually breaks it"),
        Text(f"  {one.breaks}"),
        *(Text(f"  {_mutant(mutant)}") for mutant in one.mutants),
        *([Text("  planted bugs of the same operations or graphs, which other checks are there to see:")] if one.related else []),
        *(Text(f"    {_mutant(mutant)}") for mutant in one.related),
        _head("Alone"),
        Text(f"  parity run --only {check.id}"),
    ]
    lines += [Text(f"  {_planted(mutant)}") for mutant in one.mutants[:1]]
    if one.bisects:
        lines.append(Text(f"  parity bisect {check.id}          which operation it is, section by section"))
    lines.append(Text("  parity replay FILE          a failure that a run wrote; its report names the file"))
    return lines


def _head(words: str) -> Text:
    return Text(f"\n{words}", style="bold")


def _question(one: Explanation, question: Question) -> list[Text]:
    """What is asked of whom, by dtype; why the rest is not."""
    cells = [cell for cell in one.cells if cell.question is question]
    lines = [Text.assemble((f"\n{question}", "bold"), f": {MEANING[question]}")]
    for dtype in dict.fromkeys(cell.dtype for cell in cells if cell.plan is not None):
        asked = [" = ".join(cell.stacks) for cell in cells if cell.plan is not None and cell.dtype == dtype]
        lines.append(Text(f"  {dtype}: {', '.join(asked)}"))
    reasons = dict.fromkeys(cell.reason for cell in cells if cell.plan is None)
    return [*lines, *(Text(f"  not asked: {reason}", style="dim") for reason in reasons)]


def _mutant(mutant: Mutant) -> str:
    return f"{mutant.name}: {mutant.what}"


def _planted(mutant: Mutant) -> str:
    return f"parity run --only {mutant.check} --profile quick --mutant {mutant.name}          to see it go red"
