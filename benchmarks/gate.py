"""What the gate itself costs: wall time, the stacks' busy time, and the engine's overhead over it.

Run: .venv/bin/python benchmarks/gate.py [--runs 3]
Each run is a process of its own, as a user's is: within one process a second run would find the first one's references cached.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parity.report.record import Run

COMMAND = (sys.executable, "-c", "from parity.cli import main; main()", "run", "--tier", "A,B", "--profile", "quick")


def main() -> None:
    """Runs tiers A and B at the quick profile several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    walls, overheads = [], []
    with tempfile.TemporaryDirectory() as folder:
        record_file = Path(folder) / "run.json"
        for number in range(parser.parse_args().runs):
            began = time.monotonic()
            subprocess.run([*COMMAND, "--json", str(record_file)], stdout=subprocess.DEVNULL, check=True)
            walls.append(time.monotonic() - began)
            timing = Run.model_validate_json(record_file.read_bytes()).timing
            assert timing.overhead is not None
            overheads.append(timing.overhead)
            by_stack = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timing.by_stack.items())
            print(f"run {number}: {walls[-1]:.1f} s, some stack busy {timing.busy:.1f} s ({by_stack}), overhead {overheads[-1]:.0%}")
    print(f"median: {statistics.median(walls):.1f} s, overhead {statistics.median(overheads):.0%}")


if __name__ == "__main__":
    main()
