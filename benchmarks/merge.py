"""The file-level merge against copying the file: SmolLM2 with LoRA of rank 16 on all seven linears of each block.

Run: .venv/bin/finetune fetch smollm2-135m; .venv/bin/python benchmarks/merge.py [--pairs 5] [--folder DIR]
A copy (shutil.copyfile, fsync) and a merge take turns, each into a new file on the same disk. The merge is a process of its own, as a
user's is; its peak memory is what the kernel says of it (Linux).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from contract.artifacts import v3
from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.names import places
from contract.model import folder, layout
from contract.reading import json_file

MODEL, RANK = "smollm2-135m", 16

MERGE = "import sys; from contract.cli import main; sys.argv[0] = 'finetune'; main()"


def main() -> None:
    """Alternating pairs, medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; else the temporary folder's")
    arguments = parser.parse_args()
    base = folder.locate(MODEL)
    copies, merges, peaks = [], [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work = Path(name)
        v3.write(work / "adapter", random_adapter(base))
        weights = base / "model.safetensors"
        for number in range(arguments.pairs):
            copies.append(_copy(weights, work / "copy"))
            seconds, peak = _merge(work / "adapter", base, work / "merged")
            merges.append(seconds)
            peaks.append(peak)
            print(f"pair {number}: copy {copies[-1]:.2f} s, merge {merges[-1]:.2f} s, peak {peak / 2**20:.0f} MiB")
        size = weights.stat().st_size / 1e6
    copy, merge = statistics.median(copies), statistics.median(merges)
    print(f"median, {size:.0f} MB: copy {copy:.2f} s, merge {merge:.2f} s: {merge / copy:.1f} times; peak {max(peaks) / 2**20:.0f} MiB")


def random_adapter(base: Path) -> Adapter:
    """LoRA of rank 16 on every linear of every block, A and B drawn."""
    model = layout.read(json_file(base / "config.json"))
    generator = np.random.default_rng(0)
    linears = [f"layers.{layer}.{name}" for layer in range(model.num_hidden_layers) for name in model.linears]

    def drawn(*shape: int) -> np.ndarray:
        return (0.01 * generator.standard_normal(shape)).astype(np.float32)

    def pair(logical: str) -> tuple[np.ndarray, np.ndarray]:
        out, in_ = model.widths[logical.rpartition(".")[2]]
        return drawn(RANK, in_), drawn(out, RANK)

    return Adapter(
        matrices={logical: pair(logical) for logical in linears}, places=places(model, linears), layer_order=tuple(linears), rank=RANK,
        alpha=32, method="qlora", quant=Quant(base_quant="nf4", double_quant=True), vocab=model.vocab_size, d_model=model.hidden_size,
        embed_key="model.embed_tokens.weight", base_model=MODEL, graph="full_causal",
    )  # fmt: skip


def _copy(source: Path, target: Path) -> float:
    began = time.monotonic()
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
    took = time.monotonic() - began
    target.unlink()
    return took


def _merge(adapter: Path, base: Path, target: Path) -> tuple[float, int]:
    """Seconds, and the largest resident memory in bytes."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", MERGE, "merge-qlora", str(adapter), str(base), str(target)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    if status:
        raise SystemExit(f"the merge ended with {os.waitstatus_to_exitcode(status)}")
    shutil.rmtree(target)
    return took, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
