"""Captures on the terminal: what one holds, and what an upgrade changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.worker.files import replacing
from parity.capture.bits import TensorBits
from parity.capture.judged import NOT_LOOKED_FOR
from parity.capture.take import Taken
from parity.capture.upgrade import Upgrade, VerdictChange
from parity.report.record import Run, Status

_MIB = 2**20


def show_taken(taken: Taken, folder: Path, console: Console) -> None:
    """What was written, its size, and what to do with it."""
    index = taken.index
    kept = f", {taken.kept} of them before" if taken.kept else ""
    versions = ", ".join(f"{package} {version}" for package, version in index.versions.items())
    console.print(Text.assemble((index.stack, "bold"), f" on {index.device} ({versions}), profile {index.profile}, seed {index.seed}"))
    checks, examples = _counted(len(index.checks), "check"), _counted(taken.examples, "example")
    console.print(
        f"{checks}, {examples}, {_counted(taken.asked + taken.kept, 'request')}{kept}; {taken.size / _MIB:.1f} MiB in {folder}",
        soft_wrap=True,
    )
    if taken.failed:
        console.print(Text(f"{taken.failed} requests have an error for an answer; parity compare tells which", style="bold magenta"))
    for reason in taken.missing:
        console.print(Text(f"missing: {reason}", style="bold yellow"))
    console.print(Text(f"next: parity compare {folder} OTHER_DIR"), soft_wrap=True)


def _counted(number: int, what: str) -> str:
    """As 1 check, 2 checks."""
    return f"{number} {what}{'s' * (number != 1)}"


def show_judged(run: Run, console: Console) -> None:
    """Where the answers are from, and what is not done with them."""
    for stack in run.stacks:
        versions = ", ".join(f"{package} {version}" for package, version in stack.versions.items())
        console.print(Text(f"{stack.name} answered {run.machine.get(f'{stack.name} answered', '')}; {versions}"), soft_wrap=True)
    if any(result.status is Status.FAIL for result in run.results):
        console.print(NOT_LOOKED_FOR)


def write(found: Upgrade, path: Path) -> None:
    """Writes the differences as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(found.model_dump_json(indent=2).encode())


def show_upgrade(found: Upgrade, console: Console) -> None:
    """Versions, defects, verdicts and bits, each only where it changed; and the verdict in one line."""
    console.print(Text(f"old {found.old.name}\nnew {found.new.name}"), soft_wrap=True)
    for stack in found.left_out:
        console.print(Text(f"{stack} is left out: neither has its packages", style="dim"))
    for change in found.versions:
        console.print(Text.assemble("version  ", (f"{change.stack} {change.package}", "bold"), f" {change.old} -> {change.new}"))
    if not found.versions:
        console.print(Text("version  every one is the same"))
    for line in _defects(found):
        console.print(line, soft_wrap=True)
    for verdict in found.verdicts:
        console.print(_verdict(verdict), soft_wrap=True)
    if found.bits:
        console.print(_bits(found.bits))
    for text in found.unmatched:
        console.print(Text(f"unmatched {text}", style="yellow"), soft_wrap=True)
    console.print(_summary(found))


def _defects(found: Upgrade) -> Iterator[Text]:
    for one in found.defects:
        if one.appears or one.vanishes:
            word, style = ("appears", "bold red") if one.appears else ("vanishes", "bold green")
            yield Text.assemble("defect   ", (f"{one.defect} {word}", style), f" ({one.stack}: {one.what})")
    still = [one.defect for one in found.defects if one.old and one.new]
    if still:
        yield Text(f"defect   shows in both: {', '.join(still)}", style="dim")


def _verdict(change: VerdictChange) -> Text:
    style = "bold red" if change.worse else "bold"
    return Text.assemble("verdict  ", change.cell, ": ", (f"{change.old} -> {change.new}", style), f"  {change.reason}")


def _bits(changed: tuple[TensorBits, ...]) -> Table:
    """A line a tensor that differs."""
    table = Table("stack", "check", "tensor", "dtype", title="\nbits that differ", title_justify="left", box=None, pad_edge=False)
    for column in ("elements", "differ", "ulp at most", "NaN in one"):
        table.add_column(column, justify="right")
    for one in changed:
        shape = f" ({one.reshaped} of another shape)" if one.reshaped else ""
        table.add_row(
            one.stack, one.check, f"{one.tensor}{shape}", one.dtype, str(one.elements), str(one.differ), str(one.ulp), str(one.nan or "")
        )
    return table


def _summary(found: Upgrade) -> Text:
    told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in found.statuses.items() if status != Status.NOT_APPLICABLE)
    compared = f"{found.elements} elements of {found.tensors} tensors; {told}; profile {found.profile}, seed {found.seed}"
    if found.unchanged:
        return Text.assemble(("\nNOTHING CHANGED", "bold green"), f"  {compared}; exit {found.exit_code}")
    worse = sum(one.worse for one in found.verdicts) + sum(one.appears for one in found.defects)
    head = ("\nWORSE", "bold red") if worse else ("\nCHANGED, NOTHING WORSE", "bold")
    changes = (
        f"{sum(one.appears or one.vanishes for one in found.defects)} defects, {len(found.verdicts)} verdicts, {len(found.bits)} tensors"
    )
    return Text.assemble(head, f"  {changes} differ; {compared}; exit {found.exit_code}")
