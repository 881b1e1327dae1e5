"""Graphs on the terminal: how far each tap and gradient differs, and which operations are at fault."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from parity.find.fault import Fault
from parity.report.record import Result, Run


def shown(run: Run) -> list[Result]:
    """The cells whose differences say most: two stacks in float64; where there is no pair, each stack against the reference."""
    of_graphs = [result for result in run.results if any(tensor.relative is not None for tensor in result.tensors)]
    pairs = [result for result in of_graphs if result.question == "same_function"]
    return pairs or [result for result in of_graphs if result.dtype == "float64"] or of_graphs


def differences(run: Run) -> Group:
    """The largest relative difference of a row (token or channel) of each tap and gradient: a column for each cell."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("tap or gradient", no_wrap=True)
    columns = shown(run)
    for result in columns:
        table.add_column("\n".join([result.id, result.dtype, *result.stacks]), justify="right", no_wrap=True)
    for name in dict.fromkeys(tensor.tensor for result in columns for tensor in result.tensors):
        found = [next((tensor.relative for tensor in result.tensors if tensor.tensor == name), None) for result in columns]
        table.add_row(name, *("" if relative is None else f"{relative:.1e}" for relative in found))
    return Group(Text("\nWorst relative difference of a row: a token of a tap, a channel of a gradient.\n"), table)


def fault(fault: Fault) -> Text:
    """One operation at fault, on two lines."""
    sections = (
        fault.sections[0] if len(fault.sections) == 1 else f"{len(fault.sections)} sections, {fault.sections[0]} to {fault.sections[-1]}"
    )
    direction = "forward and backward" if fault.direction == "both" else fault.direction
    return Text.assemble(
        "  at fault: ", (f"{fault.stack} {fault.operation}", "bold red"), f" ({direction}; {sections})\n",
        f"    {fault.tensor}{list(fault.where)} on the reference's inputs: got {fault.got:.9g}, wanted {fault.wanted:.9g}; "
        f"relative {fault.relative:.2g} of its row, allowed {fault.relative * fault.bound / fault.observed if fault.observed else 0:.2g}",
    )  # fmt: skip


def show_faults(found: Sequence[tuple[str, str, Sequence[Fault]]], console: Console) -> None:
    """Case by case and stack by stack, each operation at fault, or that there is none."""
    for case, stack, faults in found:
        verdict = (f"{len(faults)} at fault", "bold red") if faults else ("every operation is right", "green")
        console.print(Text.assemble((f"{stack}", "bold"), f" on {case}: ", verdict))
        for one in faults:
            console.print(fault(one), soft_wrap=True)
