"""A run of tier D as files: a small model, its tokenizer, JSONL rows and a contract, in a folder as a user's own would lie there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from contract.run.spec import FineTuneContract
from contract.worker.plan import GraphPlan, Lora
from parity.checks import artifact_files
from parity.checks.graph_draws import weights_of
from parity.checks.trajectory_run import SEED, TrainingRun

_MARKUP = ("<|im_start|>", "<|im_end|>")
_ROLES = ("system", "user", "assistant")


def write(run: TrainingRun, folder: Path) -> FineTuneContract:
    """Writes model, tokenizer and rows into a folder; the contract over them."""
    rng = np.random.default_rng(SEED)
    model = folder / "model"
    plan = GraphPlan(layout=run.layout, dtype="float32", lora=Lora(rank=1, alpha=1.0))
    artifact_files.write_base(model, run.layout, weights_of(rng, plan))
    words = _tokenizer(run.layout.vocab_size, model / "tokenizer.json")
    rows = [_row(run, rng, words) for _ in range(run.rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return contract(run, folder)


def contract(run: TrainingRun, folder: Path) -> FineTuneContract:
    """The run's contract over the files in a folder."""
    model, data = {"hf_repo": str(folder / "model")}, {"train_file": str(folder / "rows.jsonl"), "validation_split": 0.0}
    fields = {name: dict(section) for name, section in run.fields.items()}
    fields["data"] = {**data, **fields.get("data", {})}
    fields["exec"] = {"seed": SEED, **fields["exec"]}
    top = {"graph": run.graph, "objective": run.objective}
    return FineTuneContract.model_validate({"lane": "research", "model": model, **top, **fields})


def _tokenizer(vocabulary: int, path: Path) -> list[str]:
    """Writes a tokenizer of whole words, one for each id of the model; its plain words."""
    words = [f"word{number}" for number in range(vocabulary - len(_MARKUP) - len(_ROLES) - 1)]
    numbered = {word: index for index, word in enumerate((*_MARKUP, "[UNK]", *_ROLES, *words))}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbered, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(list(_MARKUP))
    library.save(str(path))
    return words


def _row(run: TrainingRun, rng: np.random.Generator, words: list[str]) -> dict[str, Any]:
    """So many words to read, and so many to learn."""
    (fewest, most), (fewest_learned, most_learned) = run.words
    chosen = rng.choice(words, most + most_learned)
    asked, learned = int(rng.integers(fewest, most + 1)), int(rng.integers(fewest_learned, most_learned + 1))
    row: dict[str, Any] = {"prompt": " ".join(chosen[:asked]), "response": " ".join(chosen[most : most + learned])}
    return row | ({"difficulty": int(rng.integers(1, 4))} if run.difficulty else {})
