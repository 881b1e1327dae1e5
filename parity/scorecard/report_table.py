"""A report on a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from parity.scorecard.report import Report, Summary


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"


_ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("backend", lambda one: one.backend),
    ("episodes", lambda one: f"{one.episodes:,}"),
    ("unfinished", lambda one: f"{one.unfinished:,}"),
    ("infra errors", lambda one: ", ".join(f"{count} {name}" for name, count in one.infra_errors.items()) or "0"),
    ("syntax, first answer", lambda one: _share(one.compile_pass_1)),
    ("syntax, last answer", lambda one: _share(one.compile_pass_n)),
    ("semantics", lambda one: _share(one.semantic_task_success)),
    ("task success", lambda one: _share(one.task_success)),
    ("canonical", lambda one: _share(one.canonical_pass)),
    ("strictness", lambda one: _share(one.strictness)),
    ("anti-stub", lambda one: _share(one.anti_stub_pass)),
    ("trivial", lambda one: _share(one.trivial_output)),
    ("richness, mean", lambda one: _share(one.richness_mean)),
    ("placeholder hits", lambda one: f"{one.placeholder_hits:,}"),
    ("stalled", lambda one: _share(one.stall_rate)),
    ("attempts, mean", lambda one: _number(one.attempts_mean)),
    ("repair depth, mean of passed", lambda one: _number(one.repair_depth_mean)),
    ("time to first valid, median", lambda one: _milliseconds(one.time_to_first_valid_ms_p50)),
    ("latency, median", lambda one: _milliseconds(one.latency_ms_p50)),
    ("latency, 95th percentile", lambda one: _milliseconds(one.latency_ms_p95)),
    ("tokens in", lambda one: f"{one.tokens_in:,}"),
    ("tokens out", lambda one: f"{one.tokens_out:,}"),
    ("tokens written a second", lambda one: _number(one.generated_tokens_per_second)),
)


def show(report: Report, console: Console) -> None:
    """The table, a column a condition."""
    table = Table("", *(one.condition for one in report.summaries), box=None, pad_edge=False)
    for name, cell in _ROWS:
        table.add_row(name, *(cell(one) for one in report.summaries))
    console.print(f"cycle {report.cycle}, suite {report.suite_sha256[:16]}{', rescored' if report.rescored else ''}")
    console.print(table)


def markdown(report: Report) -> str:
    """The same as Markdown."""
    head = f"| cycle {report.cycle} | {' | '.join(one.condition for one in report.summaries)} |"
    rows = [f"| {name} | {' | '.join(cell(one) for one in report.summaries)} |" for name, cell in _ROWS]
    return "\n".join([head, "|---" * (len(report.summaries) + 1) + "|", *rows]) + "\n"
