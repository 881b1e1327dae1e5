"""What a request costs beside its work: medians over many requests to a worker that computes next to nothing.

Run: python benchmarks/request_overhead.py [STACK] [DEVICE]    (default: an empty stack in this file)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from contract.worker.discover import discover
from contract.worker.process import StackProcess
from contract.worker.serve import Channel, serve
from contract.worker.stack import Attributes, Reply, Tensors

REPEATS = 500


class EmptyStack:
    """Answers at once."""

    def __init__(self, device: str, channel: Channel) -> None:
        self._device = device

    def probe(self) -> Reply:
        """The device's name."""
        return Reply(values={"device": self._device})

    def compute(self, op: str, attrs: Attributes, tensors: Tensors) -> Reply:
        """The first input as y, whatever was asked for."""
        return Reply(tensors={"y": tensors["a"]})


def measure(name: str, repeats: int, ask: Callable[[], object]) -> None:
    """Prints the median and the 95th percentile of `repeats` calls."""
    ask()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    tail = statistics.quantiles(seconds, n=20)[-1]
    print(f"{name:32} median {statistics.median(seconds) * 1e3:8.3f} ms   95 % under {tail * 1e3:8.3f} ms   ({repeats} requests)")


def main() -> None:
    """Measures the stack that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", nargs="?")
    parser.add_argument("device", nargs="?", default="CPU")
    arguments = parser.parse_args()
    command = (sys.executable, str(Path(__file__).resolve())) if arguments.stack is None else discover()[arguments.stack].command
    small, large = np.zeros((4, 4), np.float32), np.zeros((1024, 1024), np.float32)
    started = time.perf_counter()
    with StackProcess(arguments.stack or "empty", command, arguments.device) as process:
        print(f"start {time.perf_counter() - started:.3f} s")
        measure("cancel, no tensors", REPEATS, lambda: process.request("cancel"))
        measure("matmul 4 x 4", REPEATS, lambda: process.compute("matmul", {}, {"a": small, "b": small}))
        measure("matmul 1024 x 1024 (12 MiB)", REPEATS // 10, lambda: process.compute("matmul", {}, {"a": large, "b": large}))


if __name__ == "__main__":
    if "--device" in sys.argv:
        serve("request_overhead:EmptyStack")
    else:
        main()
