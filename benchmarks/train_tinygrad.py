"""Optimiser steps of this project's tinygrad stack: what the first calls cost, and what a step does.

Run: .venv/bin/finetune fetch smollm2-135m; .venv/bin/python benchmarks/train_tinygrad.py [--case f32] [--steps 5] [--cold]

SmolLM2-135M, 4 x 128 tokens a step, LoRA of rank 16 on six linears of a block (all but down_proj). With --cold, the cache of kernels is
empty: so the first two calls compile. CPU seconds are of this process and of the compilers that it started; FLOP are tinygrad's own count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare

B, T, STEPS_OF_DATA = 4, 128, 8
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
CASES = {"f32": ("none", "float32"), "bf16": ("none", "bfloat16"), "nf4": ("nf4", "float32"), "nf4_bf16": ("nf4", "bfloat16")}
TEXT = Path(__file__).parent.parent / "examples" / "dialogues" / "train.jsonl"
GIB, GIGA = 2**30, 1e9


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step: wall and CPU seconds, floating-point operations, loss."""

    wall: float
    cpu: float
    flop: float
    loss: float


def main() -> None:
    """Measures, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="f32", choices=CASES)
    parser.add_argument("--steps", type=int, default=5, help="after the first two")
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if arguments.cold:
            os.environ["CACHEDB"] = str(Path(work) / "kernels.db")  # before tinygrad is imported
        opened, taken = measure(prepared(arguments.case, Path(work)), arguments.steps + 2)
    print("| call | wall | CPU | GFLOP/s | loss |\n|---|---|---|---|---|")
    for number, one in enumerate(taken):
        print(f"| {number + 1} | {one.wall:.1f} s | {one.cpu:.1f} s | {one.flop / one.wall / GIGA:.1f} | {one.loss:.6f} |")
    later = statistics.median(one.wall for one in taken[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(
        f"\nOpening {opened:.1f} s; the first two calls {taken[0].wall + taken[1].wall:.1f} s; a step {later:.1f} s; peak {peak:.2f} GiB."
    )


def prepared(case: str, work: Path) -> Run:
    """A run of full rows."""
    base, dtype = CASES[case]
    text = TEXT.read_text().replace("\n", " ")
    size = len(text) // (B * STEPS_OF_DATA)
    lines = [{"prompt": "Go on.", "response": text[at * size : (at + 1) * size]} for at in range(B * STEPS_OF_DATA)]
    (work / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"epochs": 1, "seq_len": T, "batch_size": B, "grad_accum": 1, "compute_dtype": dtype, "warmup_steps": 0}
    contract = {
        "lane": "research",
        "model": {"hf_repo": "smollm2-135m"},
        "data": {"train_file": str(work / "rows.jsonl"), "validation_split": 0},
        "adapter": {"method": "lora", "target_modules": LINEARS},
        "quant": {"base": base},
        "exec": settings,
    }
    return prepare(FineTuneContract.model_validate(contract), cache=work / "cache")


def measure(run: Run, count: int) -> tuple[float, list[Taken]]:
    """Seconds that opening took, and the steps."""
    from tinygrad import GlobalCounters

    from stacks.tinygrad_lora.device import open_device
    from stacks.tinygrad_lora.train import TinygradTrainer

    began = time.perf_counter()
    open_device("CPU")
    trainer = TinygradTrainer(run, "CPU")
    opened, steps, taken = time.perf_counter() - began, list(run.steps.steps()), []
    for number in range(count):
        GlobalCounters.reset()
        began, before = time.perf_counter(), _cpu()
        done = trainer.step(steps[number % len(steps)], run.contract.exec.learning_rate)
        wall, cpu = time.perf_counter() - began, _cpu() - before
        taken.append(Taken(wall=wall, cpu=cpu, flop=float(GlobalCounters.global_ops), loss=done.loss))
    return opened, taken


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
