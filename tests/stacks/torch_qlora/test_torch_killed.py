"""`finetune train` killed with SIGKILL at twenty moments, each run resumed to its end: the adapter of the undisturbed one, bit for bit.

NF4, dropout, packing, accumulation, the torch stack in a worker of its own. Half of the moments are drawn by the clock, half among the
file operations of the run; in half of the cases the launcher is killed too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.artifacts.telemetry import read_telemetry
from contract.training import checkpoints
from tests.contract.model import tiny_checkpoint
from tests.contract.run import small_run
from tests.contract.training.toy_run import outputs

ROOT = Path(__file__).parents[3]
FINETUNE = (sys.executable, "-c", "from contract.cli import main; main()")
DEADLINE = 120.0
STEPS, MOMENTS = 12, 20

EXEC: Mapping[str, Any] = {
    "seq_len": 64, "batch_size": 2, "grad_accum": 3, "epochs": 3, "max_steps": STEPS, "warmup_steps": 2, "learning_rate": 0.01,
    "checkpoint_every": 2, "packing": True,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a run is killed: at a file operation of the worker's, or some seconds after a number of steps is in the telemetry."""

    number: int
    both: bool
    operation: int | None = None
    steps: int = 0
    seconds: float = 0.0


class Home:
    """A checkpoint, rows and a contract; the folder `straight` of a run that nobody disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        small_run.make(folder)
        tiny_checkpoint.write(folder / "model", vocab_size=30, max_position_embeddings=64)
        rows = [{"prompt": "question " * (1 + number % 5), "response": "answer question " * (1 + number % 7)} for number in range(150)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {
            "stack": "torch_qlora", "model": {"hf_repo": str(folder / "model")},
            "data": {"train_file": str(folder / "rows.jsonl"), "validation_split": 0.1},
            "adapter": {"method": "qlora", "rank": 3, "alpha": 7.0, "dropout": 0.2, "rank_pattern": {"k_proj": 2}},
            "quant": {"base": "nf4"}, "exec": EXEC,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(fields))
        assert self.launch("straight", "run.json").wait(DEADLINE) == 0
        self.straight = folder / "straight"
        self.operations = int((folder / "straight.count").read_text())

    def launch(self, name: str, *arguments: str, operation: int | None = None, both: bool = False) -> subprocess.Popen[bytes]:
        """`finetune train` in a process of its own; what it says goes to NAME.err."""
        place = self.folder / f"{name}.where"
        place.mkdir(exist_ok=True)
        script = Path(__file__).with_name("torch_killed_worker.py")
        at = "none" if operation is None else str(operation)
        command = [sys.executable, str(script), str(self.folder / name), at, "both" if both else "worker"]
        table = {"command": command, "capabilities": str(ROOT / "stacks" / "torch_qlora" / "capabilities.json")}
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        (place / "parity.toml").write_text(f"[stacks.torch_qlora]\n{lines}")
        given = [str(self.folder / argument) if argument.endswith(".json") else argument for argument in arguments]
        there = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(place),
        }  # a cache of its own: each run writes the same files
        with open(self.folder / f"{name}.err", "wb") as error:
            return subprocess.Popen(
                [*FINETUNE, "train", *given, "--out", str(self.folder / name)], cwd=place, env=os.environ | there, stderr=error,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def error(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()

    def disturbed(self, moment: Moment) -> str:
        """A run that is killed at a moment and then goes on to its end; where the moment fell."""
        name = f"run{moment.number}"
        process = self.launch(name, "run.json", operation=moment.operation, both=moment.both)
        if moment.operation is None:
            self.kill(name, process, moment)
        code = process.wait(DEADLINE)
        if moment.both:
            assert code == -signal.SIGKILL
        else:
            assert code == 1
            assert "was killed by SIGKILL" in self.error(name).splitlines()[-1]
        fell = where(self.folder / name)
        assert self.launch(name, "run.json", "--resume").wait(DEADLINE) == 0, self.error(name)
        self.require_same(name)
        return fell

    def kill(self, name: str, process: subprocess.Popen[bytes], moment: Moment) -> None:
        """From outside, once so many steps are in the telemetry, and some time later."""
        deadline = time.monotonic() + DEADLINE
        while rows_of(self.folder / name) < moment.steps:
            assert process.poll() is None, self.error(name)
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moment.seconds)
        if moment.both:
            process.kill()
        os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)

    def require_same(self, name: str) -> None:
        """Adapters, last checkpoint and telemetry are those of the undisturbed run, and nothing half written is left."""
        folder = self.folder / name
        assert outputs(folder) == outputs(self.straight)
        assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
            str(path.relative_to(self.straight)) for path in self.straight.rglob("*")
        }
        last = checkpoints.of_run(folder)[-1]
        for path in last.iterdir():
            assert path.read_bytes() == (self.straight / "checkpoints" / last.name / path.name).read_bytes()
        assert told(folder) == told(self.straight)


def rows_of(folder: Path) -> int:
    path = folder / "telemetry.jsonl"
    return path.read_bytes().count(b'"step"') if path.exists() else 0


def told(folder: Path) -> list[tuple[object, ...]]:
    """The telemetry, but for times and memory."""
    rows = read_telemetry(folder / "telemetry.jsonl").rows
    return [(row.step, row.loss, row.lr, row.grad_norm, row.tokens, row.validation_loss, row.validation_loss_before) for row in rows]


def where(folder: Path) -> str:
    """What was under way when a run was killed, by what it left."""
    inside = folder / checkpoints.FOLDER
    if inside.is_dir() and any(path.name.endswith(".partial") for path in inside.iterdir()):
        return "in the write of a checkpoint"
    if any(folder.rglob("*.partial")):
        return "in the write of another file"
    done = rows_of(folder)
    return "before the first step" if done == 0 else "after the last step" if done == STEPS else "between checkpoints"


def moments(operations: int) -> list[Moment]:
    draw = random.Random(6)
    clocked = [
        Moment(number=number, both=number % 2 == 0, steps=draw.randrange(1, STEPS - 2), seconds=draw.uniform(0.0, 0.05))
        for number in range(MOMENTS // 2)
    ]
    planted = [Moment(number=number, both=number % 2 == 0, operation=draw.randrange(operations)) for number in range(MOMENTS // 2, MOMENTS)]
    return clocked + planted


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_torch_run_killed_at_twenty_moments_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert len(told(home.straight)) == STEPS
    with ThreadPoolExecutor(2) as pool:
        fell = Counter(pool.map(home.disturbed, moments(home.operations)))
    print(dict(fell))
    assert sum(fell.values()) == MOMENTS
    assert fell["in the write of a checkpoint"] >= 1
    assert fell["between checkpoints"] >= 1
