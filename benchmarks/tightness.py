"""How tight each bound is: observed / bound per check, question, stack and tensor, over many drawn examples.

Run: .venv/bin/python benchmarks/tightness.py [--profile ci] [--seed N]
Prints a Markdown table; docs/theory.md holds one of its outputs.
"""

from __future__ import annotations

import argparse

from parity.report.record import Status
from parity.session import Options, Progress, run


def main() -> None:
    """One run of every check, and its tightest comparison of each tensor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="ci")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    record = run(Options(profile=arguments.profile, seed=arguments.seed), Progress())
    print("| check | question | stack | tensor | largest observed / bound |\n|---|---|---|---|---|")
    for result in record.results:
        if result.status is Status.NOT_APPLICABLE:
            continue
        for tensor in result.tensors:
            if tensor.bound > 0:
                stacks = " = ".join(result.stacks)
                print(f"| {result.id} | {result.question} | {stacks} | {tensor.tensor} | {tensor.observed / tensor.bound:.2g} |")


if __name__ == "__main__":
    main()
