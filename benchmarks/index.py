"""Time and memory of the rows' index, of reaching rows by number, of the order of an epoch, of sorting by difficulty and of dropout masks.

    python benchmarks/index.py [ROWS ...]

Times are a processor's. Each number of rows is measured in a process of its own, whose own memory (without mapped files, which the
system takes back when it needs the room) is read at its peak. The train file is made in a temporary folder: about 150 bytes a row.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from contract.data import dropout
from contract.data.curriculum import EasiestFirst
from contract.data.index import RowIndex, open_index
from contract.data.order import Shuffled, Split
from contract.run.spec import DataSpec


def write_rows(path: Path, rows: int) -> None:
    """A train file of small rows."""
    draw = random.Random(0)
    with open(path, "w") as file:
        for row in range(rows):
            fields = {"prompt": f"What is {row} times {row}?", "response": f"It is {row * row}.", "rating": 3 + row % 3}
            file.write(json.dumps(fields | {"category": "arithmetic", "difficulty": draw.random()}) + "\n")


class Peak:
    """The most memory of its own that this process has held while it was measured, in MiB."""

    def __init__(self) -> None:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.most = self._own()
        threading.Thread(target=self._watch, daemon=True).start()

    def _own(self) -> float:
        memory = self._process.memory_info()
        return float(memory.rss - getattr(memory, "shared", 0)) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._own())


def opened(path: Path, cache: Path) -> RowIndex:
    """The index, and a line on how long it took."""
    started = time.process_time()
    index = open_index(path, DataSpec(train_file=str(path)), cache=cache)
    print(f"  index       {time.process_time() - started:9.3f} s    {index.file.stat().st_size / 2**20:8.1f} MiB on disk")
    return index


def measure(path: Path) -> None:
    """One train file, in this process."""
    print(f"{path.stat().st_size / 2**20:,.0f} MiB of rows")
    with tempfile.TemporaryDirectory() as folder:
        peak = Peak()
        print(f"  before                                          {peak.most:8.1f} MiB of memory")
        opened(path, Path(folder))
        index = opened(path, Path(folder))
        print(f"  peak                                            {peak.most:8.1f} MiB of memory")
        split = Split(len(index), 0.05, 42)
        order = Shuffled(split, 42)
        rows = timed("order", 4096, lambda: order.rows(0, np.arange(4096) % order.count))
        timed("row", 4096, lambda: [index.row(row) for row in rows.tolist()])
        started = time.process_time()
        easiest = EasiestFirst(index, split, 42)
        print(f"  sorting     {time.process_time() - started:9.3f} s")
        timed("curriculum", 16, lambda: easiest.rows(0, np.arange(16) % order.count))
        print(f"  peak                                            {peak.most:8.1f} MiB of memory")


def timed(name: str, count: int, work: object) -> np.ndarray:
    """What `work` gives, and a line on how long one of its parts took."""
    assert callable(work)
    started = time.process_time()
    result = work()
    print(f"  {name:10}  {(time.process_time() - started) / count * 1e6:9.2f} us each")
    return np.asarray(result, object) if isinstance(result, list) else result


def measure_masks() -> None:
    """Nanoseconds a decision, the least of twenty runs, for 4 sequences of 256 tokens."""
    samples, positions = np.arange(4)[:, None], np.arange(256)[None]
    for width in (576, 1536, 4096):
        seconds = []
        for step in range(20):
            started = time.process_time()
            dropout.mask(seed=42, step=step, samples=samples, positions=positions, layer=0, site="q_proj", width=width, probability=0.1)
            seconds.append(time.process_time() - started)
        print(f"dropout mask of {width:4} channels: {min(seconds) / (1024 * width) * 1e9:.1f} ns a decision")


def main() -> None:
    """Measures each number of rows that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.file is not None:
        measure(arguments.file)
        return
    measure_masks()
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.jsonl"
            write_rows(path, rows)
            print(f"{rows:,} rows")
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, "--file", str(path)], check=True)


if __name__ == "__main__":
    main()
