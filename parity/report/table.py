"""A run on the terminal: one line a cell, then what is red and how to see it again."""

from __future__ import annotations

import math
import shlex

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parity.report import graphs
from parity.report.record import ContractRecord, Result, Run, Status

_STYLES = {
    Status.PASS: "green", Status.FAIL: "bold red", Status.ERROR: "bold magenta", Status.WAIVED: "yellow", Status.NOT_COVERED: "bold yellow",
    Status.UNCOVERED_ALLOWED: "yellow", Status.NOT_APPLICABLE: "dim", Status.LEFT_TO_NIGHTLY: "dim",
}  # fmt: skip
_WORDS = {status: str(status) for status in Status} | {
    Status.NOT_COVERED: "uncovered", Status.UNCOVERED_ALLOWED: "uncovered (allowed)", Status.LEFT_TO_NIGHTLY: "nightly",
}  # fmt: skip
_QUESTIONS = {"same_function": "function", "precision": "precision", "fast_path": "fast path"}
_SHORT_DTYPES = {"float32": "f32", "float64": "f64", "bfloat16": "bf16"}


def show(run: Run, console: Console) -> None:
    """Prints the table, the failures with their snippets, and the verdict in one line."""
    console.print(_table(run))
    if any(tensor.relative is not None for result in run.results for tensor in result.tensors):
        console.print(graphs.differences(run))
    for result in run.results:
        if result.status not in (Status.PASS, Status.NOT_APPLICABLE, Status.LEFT_TO_NIGHTLY):
            console.print(_details(result))
            if result.again:
                console.print(Text(f"  again: {result.again}"), soft_wrap=True)
            if result.reproducer:
                console.print(Text(f"  replay: parity replay {shlex.quote(result.reproducer)}"), soft_wrap=True)
            elif result.no_reproducer:
                console.print(Text(f"  no file to replay: {result.no_reproducer}"), soft_wrap=True)
            if result.snippet and not result.reproducer:  # which says the same, of any size
                console.print("  or, with .venv/bin/python:\n")
                console.print(Text(result.snippet), soft_wrap=True)
    if run.contract is not None:
        console.print(_contract(run.contract), soft_wrap=True)
    for problem in run.problems:
        console.print(Text(f"waivers: {problem}", style="bold red"))
    console.print(_verdict(run))


def _table(run: Run) -> Table:
    """Narrow enough for 80 columns: the verdict first, two stacks of one cell on two lines."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("verdict", "check", "question", "stack", "dtype"):
        table.add_column(column, no_wrap=True)
    for column in ("n", "real", "room"):
        table.add_column(column, justify="right", no_wrap=True)
    previous = ""
    for result in run.results:
        if result.status is Status.NOT_APPLICABLE:
            continue
        table.add_row(
            Text(_WORDS[result.status], style=_STYLES[result.status]),
            "" if result.id == previous else result.id,
            _QUESTIONS.get(result.question, result.question),
            "\n= ".join(_who(stack, device) for stack, device in zip(result.stacks, result.device, strict=True)),
            _SHORT_DTYPES.get(result.dtype, result.dtype),
            str(result.examples),
            str(result.real_weights or ""),
            _headroom(result),
        )
        previous = result.id
    return table


def _who(stack: str, device: str) -> str:
    return stack if device == "CPU" else f"{stack}@{device}"


def _headroom(result: Result) -> str:
    if result.status not in (Status.PASS, Status.FAIL, Status.WAIVED) or result.observed is None:
        return ""
    if result.bound == 0:
        return "exact" if result.observed == 0 else f"{result.observed:.3g} off"
    if math.isnan(result.observed):
        return "NaN"
    if result.headroom is None:
        return "equal"
    return f"{result.headroom:.3g}x" if result.headroom >= 1 else f"{1 / result.headroom:.0e} over" if result.headroom else "over"


def _details(result: Result) -> RenderableType:
    who = " and ".join(_who(stack, device) for stack, device in zip(result.stacks, result.device, strict=True))
    head = Text.from_markup(f"\n[bold]{escape(result.id)}[/] {_QUESTIONS.get(result.question, result.question)}, {who}, {result.dtype}: ")
    head.append(result.status.replace("_", " "), style=_STYLES[result.status])
    parts: list[RenderableType] = [head, Text(f"  {result.title}"), Text(f"  {result.reason}")]
    parts += [graphs.fault(fault) for fault in result.faults]
    if result.bound_source:
        parts.append(Text(f"  bound: {result.bound_source}"))
    return Group(*parts)


def _contract(contract: ContractRecord) -> Text:
    """What of a user's run was asked, of whom, and which paths it takes there."""
    lines = [f"\ncontract {contract.file}, digest {contract.digest}"]
    lines += [f"  {check}: {told}" for check, asked in contract.asked.items() for told in asked]
    lines += [f"  production paths on {stack}: {', '.join(paths) or 'none'}" for stack, paths in contract.paths.items()]
    lines += [f"  {stack} does not take this run: {why}" for stack, why in contract.declined.items()]
    return Text("\n".join(lines))


def _verdict(run: Run) -> Text:
    counts = {status: sum(result.status is status for result in run.results) for status in Status}
    told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items() if count)
    known = run.timing.overhead is not None and run.timing.busy > 1
    overhead = f", engine overhead {max(0.0, run.timing.overhead or 0):.0%}" if known else ""
    unasked = (Status.NOT_APPLICABLE, Status.LEFT_TO_NIGHTLY)
    planted = f"; PLANTED AND NOT SEEN: {', '.join(run.mutants)}" if run.mutants and run.exit_code == 0 else ""
    nothing = "; nothing was asked, see: parity coverage" if all(one.status in unasked for one in run.results) else ""
    style = "bold green" if run.exit_code == 0 else "bold red"
    seconds = run.timing.start + run.timing.wall
    tiers = f"tier{'s' * (len(run.tiers) > 1)} {', '.join(run.tiers)}"
    return Text.assemble(
        ("\nPASS" if run.exit_code == 0 else "\nRED", style),
        f"  {tiers}: {told}; {seconds:.0f} s{overhead}; seed {run.seed}; exit {run.exit_code}{planted}{nothing}",
    )
