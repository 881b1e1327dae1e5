"""What the gate itself costs: wall time, the stacks' busy time, the engine's overhead over it, and memory; by tier and by check.

Run: .venv/bin/python benchmarks/gate.py [--runs 3] [--tier A,B] [--only CHECK] [--profile quick] [--longest 20]
Prints Markdown tables, of the last run. The first run after a change of kernels compiles them: leave it out. Each run is a process of its
own, as a user's is: within one process a second run would find the first one's references cached.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.report.record import CheckTiming, Run

COMMAND = (sys.executable, "-c", "from parity.cli import main; main()", "run")
SAMPLE_SECONDS = 0.2


def main() -> None:
    """Runs some tiers or checks several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tier", default="A,B")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--longest", type=int, default=20, help="how many checks the second table has, those that took longest")
    arguments = parser.parse_args()
    chosen = [part for check in arguments.only for part in ("--only", check)] or ["--tier", arguments.tier]
    walls, overheads = [], []
    with tempfile.TemporaryDirectory() as folder:
        record_file = Path(folder) / "run.json"
        for number in range(arguments.runs):
            began = time.monotonic()
            run = subprocess.Popen(
                [*COMMAND, "--profile", arguments.profile, *chosen, "--json", str(record_file)], stdout=subprocess.DEVNULL
            )
            with _peak_memory(run.pid) as peak:
                code = run.wait()
            if code:
                raise SystemExit(f"the gate ended with {code}; a benchmark of a red gate says nothing")
            walls.append(time.monotonic() - began)
            record = Run.model_validate_json(record_file.read_bytes())
            timing = record.timing
            assert timing.overhead is not None
            overheads.append(timing.overhead)
            by_stack = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timing.by_stack.items())
            print(
                f"run {number}: {walls[-1]:.1f} s, some stack busy {timing.busy:.1f} s ({by_stack}), overhead {overheads[-1]:.0%}, "
                f"peak of all processes {max(peak) / 2**30:.2f} GiB"
            )
    print(f"median: {statistics.median(walls):.1f} s, overhead {statistics.median(overheads):.0%}")
    for table in _tables(record, arguments.longest):
        print("\n".join(table), end="\n\n")


def _tables(run: Run, longest: int) -> Iterator[list[str]]:
    """Wall time, each stack's busy time and the run's own judging: a line for each tier, then for each of the longest checks."""
    stacks, by_check = list(run.timing.by_stack), run.timing.checks
    tiers: dict[str, list[CheckTiming]] = {}
    for check, timing in by_check.items():
        tiers.setdefault(check.partition(".")[0].upper(), []).append(timing)
    columns = ["wall", *(f"{stack} busy" for stack in stacks), "judging"]
    yield _head("tier", columns) + [f"| {tier} ({len(found)} checks) {_line(found, stacks)}" for tier, found in sorted(tiers.items())]
    slowest = sorted(by_check, key=lambda check: -by_check[check].wall)[:longest]
    examples = {check: max(result.examples for result in run.results if result.id == check) for check in slowest}
    yield _head("check", columns) + [f"| {check} ({examples[check]} examples) {_line([by_check[check]], stacks)}" for check in slowest]


def _head(what: str, columns: list[str]) -> list[str]:
    return [f"| {' | '.join([what, *columns])} |", "|---" * (len(columns) + 1) + "|"]


def _line(found: list[CheckTiming], stacks: list[str]) -> str:
    numbers = [sum(one.wall for one in found), *(sum(one.by_stack[stack] for one in found) for stack in stacks)]
    return "".join(f"| {number:.1f} s " for number in (*numbers, sum(one.judging for one in found))) + "|"


@contextmanager
def _peak_memory(pid: int) -> Iterator[list[int]]:
    """Samples of the resident memory of a process and all below it, in bytes (Linux)."""
    samples, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.append(sum(_resident(one) for one in _tree(pid)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        done.set()
        sampler.join()


def _tree(pid: int) -> list[int]:
    """A process and all below it; a child belongs to the thread that started it."""
    below: list[str] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            below += children.read_text().split()
    return [pid, *(one for child in below for one in _tree(int(child)))]


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
