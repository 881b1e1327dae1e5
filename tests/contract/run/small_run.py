"""A run whose files are all there: a tiny checkpoint, a tokenizer, a train file, a stack described in parity.toml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from contract.run.spec import FineTuneContract
from contract.worker.discover import StackInfo, discover
from tests.contract.model import tiny_checkpoint
from tests.contract.run.gate_facts import ABLE, TRAINING, contract

CPU_MEMORY: Mapping[str, Any] = {
    "device": "CPU", "process": 1000, "loading": 1, "residue": 0, "head_apart": False, "activations": {"BTD": 2}, "logits": 3,
    "source": "measured by a test",
}  # fmt: skip

ROWS = 40


def make(folder: Path, *, rows: int = ROWS) -> Path:
    """Writes it all into an empty folder."""
    tiny_checkpoint.write(folder / "model", vocab_size=30)
    vocabulary = {"[UNK]": 0, "</s>": 1, "question": 2, "answer": 3, "\n": 4}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(folder / "model" / "tokenizer.json"))
    lines = [json.dumps({"prompt": f"question {number}", "response": "answer", "rating": 3 if number % 4 else 2}) for number in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run_of(folder: Path, **changed: Any) -> FineTuneContract:
    """The contract over these files: 30 of 40 rows are kept, 1 is held back; 3 epochs of 2 steps."""
    files = {"model__hf_repo": str(folder / "model"), "data__train_file": str(folder / "rows.jsonl")}
    return contract(**{**files, "exec__seq_len": 16, "exec__ce_last_k": 4, "exec__warmup_steps": 6, **changed})


def stacks_in(folder: Path, **declared: Any) -> dict[str, StackInfo]:
    """Two stacks of a third party, `alpha` of the production lane and `beta` of the research lane, as parity.toml tells of them."""
    research = {**TRAINING, **ABLE, "inferred_for": [{"lane": "research", "methods": ["lora"]}], "bases": {"lora": ["none", "nf4"]}}
    for name, lane, training in (("alpha", "production", {**TRAINING, "memory": [CPU_MEMORY]}), ("beta", "research", research)):
        value = {
            "protocol": 1, "lane": lane, "extra": "", "packages": ["numpy"], "devices": ["CPU", "CUDA"], "requests": ["train"],
            "operations": {}, "training": training, **declared,
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(value))
    tables = "".join(f'[stacks.{name}]\ncommand = ["{name}"]\ncapabilities = "{name}.json"\n' for name in ("alpha", "beta"))
    (folder / "parity.toml").write_text(tables)
    found = discover(folder / "parity.toml")
    return {name: found[name] for name in ("alpha", "beta")}
