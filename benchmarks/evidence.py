"""What the usual comparisons see of the planted bugs, beside the gate's verdict: docs/evidence.json, and the tables of docs/evidence.md.

Run: .venv/bin/python benchmarks/evidence.py --jobs 14 [--only NAME,..] [--no-gate] [--write] [--out FILE]
The same command goes on where it was broken off. --tables makes the tables anew from docs/evidence.json, and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contract.errors import Interrupted, UserError
from contract.worker.files import cache_folder
from parity.mutants import campaign as gate
from parity.mutants import catalogue
from parity.mutants.baselines import campaign, record, table
from parity.mutants.catalogue import Mutant

DOCS = Path(__file__).parent.parent / "docs"
PAGE, DATA = DOCS / "evidence.md", DOCS / "evidence.json"
INCOMPLETE, REFUSED, INTERRUPTED = 1, 2, 130


def main() -> int:
    """Measures, prints the tables, and writes them where asked."""
    options = _options()
    if options.tables:
        table.put(record.read(DATA), PAGE)
        return 0
    try:
        mutants = [catalogue.read(name) for name in options.only.split(",") if name] or list(catalogue.read_all().values())
        evidence = _measured(mutants, options)
    except (KeyboardInterrupt, Interrupted):
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        print(error, file=sys.stderr)
        return REFUSED
    for path in (options.out, DATA if options.write else None):
        if path is not None:
            record.write(evidence, path)
    if options.write:
        table.put(evidence, PAGE)
    print(table.tables(evidence))
    return INCOMPLETE if any(one.failed for one in evidence.mutants) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--only", default="", help="mutants by name, separated by commas")
    parser.add_argument("--work", type=Path, default=cache_folder() / "baselines", help="keeps what is done")
    parser.add_argument("--no-gate", action="store_true", help="asks the rules alone")
    parser.add_argument("--out", type=Path, help="writes the data here")
    parser.add_argument("--write", action="store_true", help="writes docs/evidence.json and the tables of docs/evidence.md")
    parser.add_argument("--tables", action="store_true", help="makes the tables anew from docs/evidence.json")
    return parser.parse_args()


def _measured(mutants: Sequence[Mutant], options: argparse.Namespace) -> record.Evidence:
    verdicts: dict[str, str] = {} if options.no_gate else _gate(mutants, options.jobs)
    with _bar("rules") as (total, step):
        evidence = campaign.measure(mutants, options.work, jobs=options.jobs, tell=campaign.Tell(total=total, step=step))
    seen = tuple(one.model_copy(update={"gate": verdicts.get(one.name, record.NOT_ASKED)}) for one in evidence.mutants)
    return evidence.model_copy(update={"mutants": seen})


def _gate(mutants: Sequence[Mutant], jobs: int) -> dict[str, str]:
    """The gate's verdicts; a campaign that was broken off goes on."""
    found: dict[str, str] = {}
    with _bar("the gate") as (total, step):
        total(len(mutants))
        for outcome in gate.ask(mutants, gate.Settings(jobs=jobs)):
            found[outcome.mutant.name] = str(outcome.verdict)
            step(outcome.mutant.name)
    return found


@contextmanager
def _bar(of: str) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Progress on standard error: what sets how many steps there are, and what says that one is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(of, total=None)
        yield (
            lambda steps: bar.update(task, total=steps),
            lambda name: bar.update(task, advance=1, description=f"{of}: {name}"),
        )


if __name__ == "__main__":
    raise SystemExit(main())
