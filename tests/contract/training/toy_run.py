"""Runs of the toy stack: a folder with model, rows and parity.toml; a contract; `finetune train` in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from contract import cli
from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from tests.contract.run import small_run
from tests.contract.run.gate_facts import ABLE, TRAINING

TOY = Path(__file__).with_name("toy_stack.py")
STEPS = 15
"""3 epochs of 29 rows, 6 a step: 5 steps an epoch, the last one of 5 rows."""

DEVICES = (
    "CPU", "CUDA", "OOM0", "OOM3", "OOMLOAD", "NAN3", "NAN7", "INF3", "DIE3", "BUG3", "UNFIT3", "LACKS", "BLOWUP2",
    "SLOW100", "SLOW400", "SLOW20",
)  # fmt: skip


def make(folder: Path, *, rows: int = small_run.ROWS, **declared: Any) -> Path:
    """Model, tokenizer, rows, and the toy stack in parity.toml."""
    folder.mkdir(exist_ok=True)
    small_run.make(folder, rows=rows)
    training = {
        **TRAINING, **ABLE, "inferred_for": [{"lane": "production", "methods": ["lora"]}], "bases": {"lora": ["none"]},
        "memory": [{**small_run.CPU_MEMORY, "device": device} for device in DEVICES],
    }  # fmt: skip
    value = {
        "protocol": 1, "lane": "production", "extra": "", "packages": ["numpy"], "devices": list(DEVICES), "requests": ["train"],
        "operations": {}, "training": training, **declared,
    }  # fmt: skip
    (folder / "toy.json").write_text(json.dumps(value))
    command = json.dumps([sys.executable, str(TOY)])
    (folder / "parity.toml").write_text(f'[stacks.toy]\ncommand = {command}\ncapabilities = "toy.json"\n')
    (folder / "run.json").write_text(json.dumps(fields(folder)))
    return folder


def fields(folder: Path, *, data: Mapping[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """A contract of 15 steps, with fields of exec changed."""
    run = {
        "seq_len": 16, "warmup_steps": 4, "batch_size": 3, "grad_accum": 2, "epochs": 3, "learning_rate": 0.01, "checkpoint_every": 2,
        "max_skip_rate": 0.5,
    }  # fmt: skip
    return {
        "stack": "toy", "model": {"hf_repo": str(folder / "model")}, "data": {"train_file": str(folder / "rows.jsonl"), **(data or {})},
        "adapter": {"method": "lora", "rank": 3, "alpha": 7.0, "rank_pattern": {"k_proj": 2}}, "quant": {"base": "none"},
        "exec": run | changed,
    }  # fmt: skip


def contract_of(folder: Path, **changed: Any) -> FineTuneContract:
    return FineTuneContract.model_validate(fields(folder, **changed))


def run_of(folder: Path, **changed: Any) -> Run:
    return prepare(contract_of(folder, **changed), cache=folder / "cache")


def finetune(*arguments: object) -> int:
    """The command in this process, its worker in another: the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


def outputs(folder: Path) -> Mapping[str, bytes]:
    """Every byte of the adapters that a run left."""
    found = [path for name in ("adapter", "peft") for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
