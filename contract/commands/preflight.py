"""`finetune preflight`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contract.commands.options import ContractFile, Overrides, Preset, SkipBadRows

if TYPE_CHECKING:
    from contract.run.facts import Refusal
    from contract.run.preflight import FileReport


def preflight(
    contract: ContractFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    scan: Annotated[bool, typer.Option("--scan", help="Read every weight, for NaN and infinity.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Make every row into ids and labels, and count them.")] = False,
    skip_bad_rows: SkipBadRows = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, of what the files hold and of refusals.")] = False,
) -> None:
    """Checks the files of a run: model, tokenizer, rows; nothing is trained. Exit 2 where one is refused."""
    from contract.commands.plan import bars_where_it_takes_long, refusal_text
    from contract.errors import ContractError, ContractErrors
    from contract.run.preflight import preflight as checked
    from contract.run.source import read_contract, settings
    from contract.run.survey import Options, refusals_of

    try:
        read = read_contract(contract, preset=preset, overrides=settings(overrides, skip_bad_rows=skip_bad_rows))
    except (ContractError, ContractErrors) as error:
        answer: FileReport | tuple[Refusal, ...] = refusals_of("contract", error)
    else:
        with bars_where_it_takes_long() as report:
            options = Options(progress=lambda done, total: report("rows", done, total))
            answer = checked(
                read,
                scan=scan,
                labels=labels,
                options=options,
                scanned=lambda done, total: report("weights", done, total),
                labelled=lambda done, total: report("labels", done, total),
            )
    if isinstance(answer, tuple):
        if as_json:
            from contract.run.planner import Refused

            typer.echo(Refused(refusals=answer).model_dump_json(indent=2))
        else:
            typer.echo(refusal_text(answer))
        raise typer.Exit(2)
    typer.echo(answer.model_dump_json(indent=2) if as_json else report_text(answer))


def report_text(report: FileReport) -> str:
    """What the files hold, as a table of two columns."""
    from contract.run.device_memory import format_size

    scanned = "every weight read, none NaN or infinite" if report.scanned else "headers read, no weight; --scan reads them"
    left_out = ", ".join(f"{count:,} by {reason}" for reason, count in report.rows_left_out.items() if count)
    lines = [
        ("model", f"{report.model_type}, {report.parameters:,} parameters, {', '.join(report.dtypes)}"),
        ("weights", f"{format_size(report.weight_bytes)} in {report.shards} file{'' if report.shards == 1 else 's'}; {scanned}"),
        ("tokenizer", f"ids 0 to {report.tokenizer_ids - 1:,}; the model has {report.vocab_size:,}"),
        ("rows", f"{report.rows_kept:,} of {report.rows:,}{f' ({left_out})' if left_out else ''}"),
        ("labels", labels_text(report)),
        *(("note", note) for note in report.notes),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in lines)


def labels_text(report: FileReport) -> str:
    """What the rows become, in a line."""
    counted = report.labels
    if counted is None:
        return "not counted; --labels makes every row into ids and labels"
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in counted.skipped.items())
    rows = f"{counted.truncated:,} rows truncated, {sum(counted.skipped.values()):,} skipped{f' ({skipped})' if skipped else ''}"
    return f"{counted.learnt:,} of {counted.tokens:,} tokens are learnt; {rows}; the longest row has {counted.longest:,} tokens"
