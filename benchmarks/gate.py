"""What the gate itself costs: wall time, the stacks' busy time, and the engine's overhead over it.

Run: .venv/bin/python benchmarks/gate.py [--runs 5]
The first run may compile kernels that no cache holds yet; the median leaves it out of account.
"""

from __future__ import annotations

import argparse
import statistics

from parity.session import Options, Progress, run


def main() -> None:
    """Runs tiers A and B at the quick profile several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    walls, overheads = [], []
    for number in range(parser.parse_args().runs):
        record = run(Options(profile="quick"), Progress())
        timing = record.timing
        assert timing.overhead is not None
        walls.append(timing.start + timing.wall)
        overheads.append(timing.overhead)
        by_stack = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timing.by_stack.items())
        print(
            f"run {number}: {walls[-1]:.1f} s in all ({timing.start:.1f} s starting), some stack busy {timing.busy:.1f} s ({by_stack}), "
            f"overhead {overheads[-1]:.0%}, exit {record.exit_code}"
        )
    print(f"median: {statistics.median(walls):.1f} s in all, overhead {statistics.median(overheads):.0%}")


if __name__ == "__main__":
    main()
