"""Optimiser steps of this project's torch stack against transformers, PEFT and bitsandbytes, side by side.

Run: .venv/bin/finetune fetch smollm2-135m; .venv/bin/python benchmarks/train.py [--case f32 ...] [--pairs 7] [--steps 3]
[--device CUDA] [--model FOLDER]

SmolLM2-135M (or the model in FOLDER), 4 x 128 tokens a step, LoRA of rank 16 on all seven linears of a block; the same weights,
initial adapter, ids and labels. Each side is a fresh process with all cores. After a warm-up they take turns, some steps at a time, the
other one waiting: the ratio is that of the medians, the spread is that of the pairs' ratios. Memory is each process' own peak, loading
included; on a GPU what torch had allocated at most.
The losses of all steps are held against each other, to show that both did the same work.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from contract.data.train_rows import TrainRows
from contract.model import folder, layout
from contract.model.adapter_init import of_contract
from contract.reading import json_file
from contract.run.spec import FineTuneContract

MODEL, B, T = "smollm2-135m", 4, 128
WARM_UP, STEPS_OF_DATA = 2, 8
CASES = {"f32": ("none", "float32"), "bf16": ("none", "bfloat16"), "nf4": ("nf4", "float32"), "nf4_bf16": ("nf4", "bfloat16")}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
TEXT = Path(__file__).parent.parent / "examples" / "dialogues" / "train.jsonl"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class On:
    """What is trained, and where."""

    device: str
    model: Path


@dataclass
class Side:
    """A process that trains, and what it answered: losses of each step, seconds of each block that counts, bytes at the peak.

    notes: which production paths it takes.
    """

    name: str
    process: subprocess.Popen[str]
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    notes: list[str] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        self.peak = answer["peak"]
        return answer

    def steps(self, count: int) -> float:
        """Seconds that some steps took."""
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        answer = self.answer()
        self.losses += answer["losses"]
        return float(answer["seconds"])


def main() -> None:
    """Measures, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a block")
    parser.add_argument("--device", default="CPU", choices=("CPU", "CUDA"))
    parser.add_argument("--model", default=MODEL, help="a known name, or a folder")
    arguments = parser.parse_args()
    on = On(device=arguments.device, model=folder.locate(arguments.model))
    measured = [measure(case, on, arguments.pairs, arguments.steps) for case in arguments.case or CASES]
    print(heading(on, arguments.pairs, arguments.steps))
    print("\n".join([row for row, _ in measured] + [""] + [notes for _, notes in measured]))


def heading(on: On, pairs: int, steps: int) -> str:
    """Machine, versions, command, and the table's head."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    cpu += f" and one {_gpu()}" if on.device == "CUDA" else ""
    memory = f"{psutil.virtual_memory().total / GIB:.0f} GiB"
    columns = (
        "base",
        "peer, tokens/s",
        "ours, tokens/s",
        "ratio (of pairs)",
        "peer, peak",
        "ours, peak",
        "first loss",
        "differs by",
        "all do by",
    )
    return "\n".join(
        [
            f"Machine: {os.cpu_count()} cores of {cpu}, {memory}, {platform.system()}; Python {platform.python_version()}, {versions}.",
            f"Command: `{shlex.join(['.venv/bin/python', *sys.argv])}`: {pairs} pairs of blocks of {steps} steps.",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
        ]
    )


def _gpu() -> str:
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0")
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return f"{name} (driver {driver})"


def measure(case: str, on: On, pairs: int, steps: int) -> tuple[str, str]:
    """A row of the table, and what it took to get there."""
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        _prepare(case, on, Path(work))
        sides = [_start(name, on, Path(work), stack) for name in ("peer", "ours")]
        for side in sides:
            side.steps(WARM_UP)
        for number in range(pairs):
            for side in sides:
                side.seconds.append(side.steps(steps))
            print(f"{case}, pair {number}: " + ", ".join(f"{side.name} {side.seconds[-1]:.2f} s" for side in sides), file=sys.stderr)
    return row(case, *sides, tokens=steps * B * T), f"{case}: ours took {'; '.join(sides[1].notes)}."


def row(case: str, peer: Side, ours: Side, *, tokens: int) -> str:
    """Medians, their ratio, the smallest and largest ratio of a pair."""
    speeds = [tokens / statistics.median(side.seconds) for side in (peer, ours)]
    ratios = sorted(one / other for one, other in zip(peer.seconds, ours.seconds, strict=True))
    differences = [abs(one - other) for one, other in zip(peer.losses, ours.losses, strict=True)]
    cells = [
        case, f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", f"{speeds[1] / speeds[0]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        f"{peer.peak / GIB:.2f} GiB", f"{ours.peak / GIB:.2f} GiB",
        f"{peer.losses[0]:.6f}", f"{differences[0]:.1e}", f"{max(differences):.1e} ({len(differences)} steps)",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _start(name: str, on: On, work: Path, stack: ExitStack) -> Side:
    script = Path(__file__).with_name("train_side.py")
    command = [sys.executable, str(script), name, str(work / "contract.json"), str(on.model), str(work / "data.safetensors")]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    side = Side(name=name, process=process)
    side.notes = side.answer()["notes"]
    return side


def _prepare(case: str, on: On, work: Path) -> None:
    """The contract, in a file; the peer's data in another: what the contract's own code makes of the rows, and the initial adapter."""
    base, dtype = CASES[case]
    text = TEXT.read_text().replace("\n", " ")
    size = len(text) // (B * STEPS_OF_DATA)
    lines = [{"prompt": "Go on.", "response": text[at * size : (at + 1) * size]} for at in range(B * STEPS_OF_DATA)]
    (work / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    contract = FineTuneContract.model_validate(
        {
            "model": {"hf_repo": str(on.model)},
            "data": {"train_file": str(work / "rows.jsonl"), "validation_split": 0},
            "adapter": {"method": "qlora" if base == "nf4" else "lora"},
            "quant": {"base": base},
            "exec": {
                "epochs": 1,
                "seq_len": T,
                "batch_size": B,
                "grad_accum": 1,
                "compute_dtype": dtype,
                "warmup_steps": 0,
                "device": on.device,
            },
        }
    )
    (work / "contract.json").write_text(contract.model_dump_json())
    steps = TrainRows(contract, tokenizer_json=on.model / "tokenizer.json", cache=work / "cache").steps()
    tensors: dict[str, np.ndarray] = {}
    for step in steps.steps():
        [batch] = step.batches
        if batch.ids_BT.shape != (B, T) or not batch.attention_BT.all():
            raise SystemExit(f"{TEXT} gives a batch of {batch.ids_BT.shape} with padding; wanted {(B, T)} without")
        tensors |= {f"ids.{step.number}": batch.ids_BT, f"labels.{step.number}": batch.labels_BT}
    tensors |= of_contract(layout.read(json_file(on.model / "config.json")), contract.adapter, contract.exec.seed)
    save_file(tensors, work / "data.safetensors")


if __name__ == "__main__":
    main()
