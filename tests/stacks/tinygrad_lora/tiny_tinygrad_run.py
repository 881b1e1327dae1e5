"""A run over a tiny checkpoint and rows of many lengths, and trainers of it in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from contract.data.batches import collate
from contract.data.row import IGNORE_INDEX, Example
from contract.data.steps import Step
from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.training.trainer import TrainerState
from stacks.tinygrad_lora.train import TinygradTrainer
from tests.contract.run import small_run

VOCABULARY = 30


def run_in(folder: Path, *, dtype: Literal["float64"] | None = None, **sections: dict[str, Any]) -> Run:
    """The run of the folder's model (made where it is missing), with fields of the contract changed."""
    if not (folder / "model").exists():
        small_run.make(folder)
        lines = [
            json.dumps({"prompt": "question " * (1 + number % 5), "response": "answer question " * (1 + number % 3)})
            for number in range(23)
        ]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    fields: dict[str, dict[str, Any]] = {
        "model": {"hf_repo": str(folder / "model")},
        "data": {"train_file": str(folder / "rows.jsonl")},
        "adapter": {"method": "lora", "rank": 3, "alpha": 7.0, "rank_pattern": {"k_proj": 2, "layers.1.q_proj": 5}},
        "quant": {"base": "none"},
        "exec": {"seq_len": 16, "warmup_steps": 1, "batch_size": 3, "grad_accum": 2, "epochs": 3, "learning_rate": 0.01},
    }
    for section, changed in sections.items():
        fields[section] |= changed
    return prepare(FineTuneContract.model_validate(fields), cache=folder / "cache", dtype=dtype)


def trainer_of(run: Run, *, seed: int = 3) -> TinygradTrainer:
    """A trainer on the CPU whose B is not zero."""
    generator = np.random.default_rng(seed)
    initial = {name: (0.2 * generator.standard_normal(matrix.shape)).astype(np.float32) for name, matrix in run.initial.items()}
    return TinygradTrainer(dataclasses.replace(run, initial=initial), "CPU")


def examples(count: int = 6, *, seed: int = 5) -> list[Example]:
    """Examples of many lengths, with prompts that do not count; no two have the same number of supervised tokens."""
    generator = np.random.default_rng(seed)
    found = []
    for sample in range(count):
        ids = generator.integers(0, VOCABULARY, 4 + 2 * sample)
        labels = ids.copy()
        labels[: 1 + sample // 2] = IGNORE_INDEX
        found.append(Example(sample=sample, ids=ids, labels=labels))
    return found


def step_of(batches: Iterable[Sequence[Sequence[Example]]], *, width: int | None = None) -> Step:
    """A step of micro-batches, each of sequences, each of examples."""
    made = tuple(collate(sequences, 1, width=width) for sequences in batches)
    return Step(number=4, epoch=0, batches=made, tokens=sum(batch.tokens for batch in made), skipped=())


def bits(state: TrainerState) -> dict[str, bytes]:
    """Every bit of a state."""
    parts = {"adapter": state.adapter, "m": state.m, "v": state.v}
    return {f"{part}.{name}": matrix.tobytes() for part, matrices in parts.items() for name, matrix in matrices.items()} | {
        "updates": str(state.updates).encode()
    }
