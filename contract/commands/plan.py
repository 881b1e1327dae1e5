"""`finetune plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from contract.commands.options import ContractFile, Overrides, Preset, SkipBadRows

if TYPE_CHECKING:
    from contract.run.facts import Refusal
    from contract.run.planner import ExecutionPlan


def plan(
    contract: ContractFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    skip_bad_rows: SkipBadRows = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, of a plan and of refusals.")] = False,
    device_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="What the device has (16GiB), if not as found.")] = None,
) -> None:
    """Says how a run would go, or every reason why it may not be (exit 2)."""
    from contract.errors import ContractError, ContractErrors
    from contract.run.device_memory import parse_size
    from contract.run.planner import Refused
    from contract.run.planner import plan as planned
    from contract.run.source import read_contract, settings
    from contract.run.survey import Options, refusals_of
    from contract.worker.discover import discover

    size = None if device_memory is None else parse_size(device_memory)
    try:
        read = read_contract(contract, preset=preset, overrides=settings(overrides, skip_bad_rows=skip_bad_rows))
    except (ContractError, ContractErrors) as error:
        answer: ExecutionPlan | Refused = Refused(refusals=refusals_of("contract", error))
    else:
        with bars_where_it_takes_long() as report:
            options = Options(device_memory=size, progress=lambda done, total: report("rows", done, total))
            answer = planned(read, discover(), options)
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    elif isinstance(answer, Refused):
        typer.echo(refusal_text(answer.refusals))
    else:
        typer.echo(plan_text(answer))
    if isinstance(answer, Refused):
        raise typer.Exit(2)


@contextmanager
def bars_where_it_takes_long() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars from the first report that is not the last one; rich is not loaded before, since it takes longer than a plan."""
    with ExitStack() as stack:
        bars: list[Callable[[str, int, int], None]] = []

        def report(stage: str, done: int, total: int) -> None:
            if not bars and done < total:
                from contract.commands.progress import progress_bars

                bars.append(stack.enter_context(progress_bars()))
            for bar in bars:
                bar(stage, done, total)

        yield report


def refusal_text(refusals: tuple[Refusal, ...]) -> str:
    """Every refusal: gate, got, allowed, remedy."""
    parts = [f"refused, for {len(refusals)} reason{'' if len(refusals) == 1 else 's'}"]
    for number, refusal in enumerate(refusals, start=1):
        parts += [
            "", f"{number}. {refusal.gate}",
            f"   got      {refusal.got}", f"   allowed  {refusal.allowed}", f"   remedy   {refusal.remedy}",
        ]  # fmt: skip
    return "\n".join(parts)


def plan_text(plan: ExecutionPlan) -> str:
    """A plan as a table of two columns."""
    rows = plan.rows
    left_out = ", ".join(f"{count:,} by {reason}" for reason, count in rows.left_out.items() if count)
    lines = [
        ("stack", f"{plan.stack} on {plan.device}"),
        ("graph", f"{plan.graph}{' (compat mode: no whole transformer)' if plan.compat_mode else ''}, objective {plan.objective}"),
        ("model", f"{plan.model_type}, {plan.parameters:,} parameters, base {plan.base}"),
        *_proxy_line(plan),
        ("rows", f"{rows.kept:,} of {rows.total:,}{f' ({left_out})' if left_out else ''}, {rows.held_back:,} held back"),
        ("steps", "not known before the rows are packed" if plan.steps is None else f"{plan.steps:,}"),
        *_memory_lines(plan),
        ("digest", plan.digest),
        ("parity", plan.parity_digest),
        *(("note", note) for note in plan.notes),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in lines)


def _proxy_line(plan: ExecutionPlan) -> list[tuple[str, str]]:
    if plan.proxy_stack is None:
        return []
    proxy = plan.proxy_stack
    words = f"{proxy.keys_matched} of {proxy.keys_expected} middle keys, {'trained' if proxy.eligible else 'LM head only'}"
    return [("proxy", words)]


def _memory_lines(plan: ExecutionPlan) -> list[tuple[str, str]]:
    from contract.run.device_memory import format_size

    memory = plan.memory
    if memory.device_total is None:
        device = "of the device not known"
    else:
        free = "" if memory.device_free is None else f", {format_size(memory.device_free)} free now"
        device = f"of {format_size(memory.device_total)} ({memory.device_source}{free})"
    if memory.shares is None or memory.total is None:
        return [("memory", f"not estimated; {device}")]
    shares = [(f"  {name}", format_size(size)) for name, size in memory.shares.shares().items() if size]
    return [("memory", f"about {format_size(memory.total)} {device}"), *shares]
