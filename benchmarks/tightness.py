"""How tight each bound is, how often right stacks alarmed, and how many examples a second each check takes.

Run: .venv/bin/python benchmarks/tightness.py RECORD.json [...]
Records are what `parity run --json RECORD.json` writes, of runs whose stacks are right. Prints Markdown tables;
docs/theory.md and docs/benchmarks.md hold their output.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from parity.report.record import Result, Run, Status


def main() -> None:
    """Prints the tables of all records together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="+", type=Path)
    runs = [Run.model_validate_json(path.read_bytes()) for path in parser.parse_args().records]
    results = [result for run in runs for result in run.results if result.status is not Status.NOT_APPLICABLE]
    for table in (_tightness(results), _alarms(results), _rates(results)):
        print("\n".join(table), end="\n\n")


def _each(result: Result) -> list[str]:
    return [f"{stack} on {device}" for stack, device in zip(result.stacks, result.device, strict=True)]


def _tightness(results: Sequence[Result]) -> Iterator[str]:
    """A line for each check, question and dtype, a column for each stack on a device: median, 99 % and largest of its tightest tensor.

    What two stacks were asked together stands under both.
    """
    columns = list(dict.fromkeys(column for result in results for column in _each(result)))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in results:
        found = [tensor.tightness for tensor in result.tensors if tensor.tightness is not None]
        if found:
            worst = max(found, key=lambda one: one.largest)
            cell = " ".join(f"{number:.2g}" for number in (worst.median, worst.most, worst.largest))
            lines.setdefault((result.id, result.question, result.dtype), {}).update(dict.fromkeys(_each(result), cell))
    yield f"| check | question | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for (check, question, dtype), cells in lines.items():
        yield f"| {check} | {question}, {dtype} | {' | '.join(cells.get(column, '') for column in columns)} |"


def _alarms(results: Iterable[Result]) -> Iterator[str]:
    yield "| check | question | dtype | stack | drawn | alarms | fewer than, with 95 % confidence | least head-room |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in results:
        rate = "" if result.alarm_rate is None else f"{result.alarm_rate:.2g}"
        room = "exact" if result.bound == 0 else "" if result.headroom is None else f"{result.headroom:.3g}"
        who = " = ".join(_each(result))
        yield f"| {result.id} | {result.question} | {result.dtype} | {who} | {result.drawn} | {result.alarms} | {rate} | {room} |"


def _rates(results: Iterable[Result]) -> Iterator[str]:
    yield "| check | examples | seconds | examples a second |"
    yield "|---|---|---|---|"
    for check, group in itertools.groupby(results, key=lambda result: result.id):
        cells = list(group)
        seconds, examples = sum(cell.seconds for cell in cells), max(cell.examples for cell in cells)
        yield f"| {check} | {examples} | {seconds:.1f} | {examples / seconds if seconds else 0:.0f} |"


if __name__ == "__main__":
    main()
