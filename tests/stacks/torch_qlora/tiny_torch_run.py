"""A run over a tiny checkpoint and rows of many lengths, and trainers of it in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.data.batches import collate
from contract.data.row import IGNORE_INDEX, Example
from contract.data.steps import Step
from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.training.trainer import TrainerState
from contract.worker.plan import GraphPlan
from contract.worker.plan import Path as GraphPath
from stacks.torch_qlora import paths
from stacks.torch_qlora.train import TorchTrainer
from tests.contract.run import small_run

VOCABULARY = 30


def run_in(folder: Path, **sections: dict[str, Any]) -> Run:
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
        "exec": {"seq_len": 24, "warmup_steps": 1, "batch_size": 3, "grad_accum": 2, "epochs": 3, "learning_rate": 0.01},
    }
    for section, changed in sections.items():
        fields[section] |= changed
    return prepare(FineTuneContract.model_validate(fields), cache=folder / "cache")


def trainer_of(run: Run, *, dtype: str | None = None, with_paths: tuple[GraphPath, ...] | None = None, seed: int = 3) -> TorchTrainer:
    """A trainer on the CPU whose B is not zero.

    Args:
        dtype: in place of the contract's, float64 for laws. with_paths: in place of those that are chosen.
    """
    chosen = paths.chosen

    def other(run: Run, device: torch.device) -> tuple[GraphPlan, tuple[str, ...]]:
        plan, notes = chosen(run, device)
        changed = ({} if dtype is None else {"dtype": dtype}) | ({} if with_paths is None else {"paths": with_paths})
        return plan.model_copy(update=changed), notes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "chosen", other)
        trainer = TorchTrainer(run, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer._parameters.values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return trainer


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
