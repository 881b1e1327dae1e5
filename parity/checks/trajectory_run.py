"""The run of tier D: a small model, its tokenizer, JSONL rows and a contract, written into a folder as a user's own would lie there.

It is drawn from a seed, so it is the same in every run. One row in five is longer than seq_len and loses tokens; no two micro-batches need
have the same number of supervised tokens; the last step of an epoch has fewer rows; clipping binds in some steps and not in others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from contract.model.keymap import hugging_face_key
from contract.model.layout import LlamaLayout
from contract.run.spec import FineTuneContract
from contract.worker.plan import GraphPlan, Lora
from parity.checks.graph_draws import weights_of

STEPS = 20
"""5 epochs of 23 rows: 3 steps of 2 x 3 rows, and one of 3 + 2."""
ROWS = 23
SEED = 11

LAYOUT = LlamaLayout(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
    max_position_embeddings=32, rms_norm_eps=0.02, rope_theta=70.0, attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
)  # fmt: skip

_MARKUP = ("<|im_start|>", "<|im_end|>")
_ROLES = ("system", "user", "assistant")


def write(folder: Path) -> FineTuneContract:
    """Writes model, tokenizer and rows into a folder; the contract over them."""
    rng = np.random.default_rng(SEED)
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(_config()))
    plan = GraphPlan(layout=LAYOUT, dtype="float32", lora=Lora(rank=1, alpha=1.0))
    save_file({hugging_face_key(name): weight for name, weight in weights_of(rng, plan).items()}, model / "model.safetensors")
    words = _tokenizer(model / "tokenizer.json")
    (folder / "rows.jsonl").write_text("".join(json.dumps(_row(rng, words)) + "\n" for _ in range(ROWS)))
    return contract(model, folder / "rows.jsonl")


def contract(model: Path, rows: Path) -> FineTuneContract:
    """A supervised run with LoRA on every linear: not packed, two micro-batches a step, warm-up, decay, clipping."""
    fields: dict[str, dict[str, Any]] = {
        "model": {"hf_repo": str(model)},
        "data": {"train_file": str(rows), "validation_split": 0.0},
        "adapter": {"method": "lora", "rank": 3, "alpha": 7.0},
        "quant": {"base": "none"},
        "exec": {
            "seq_len": 16, "batch_size": 3, "grad_accum": 2, "epochs": 5, "learning_rate": 0.005, "warmup_steps": 4, "weight_decay": 0.1,
            "max_grad_norm": 7.5, "seed": SEED,
        },
    }  # fmt: skip
    return FineTuneContract.model_validate({"lane": "research", **fields})


def _config() -> dict[str, Any]:
    """LAYOUT as config.json."""
    return {**LAYOUT.model_dump(exclude_none=True), "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "hidden_act": "silu"}


def _tokenizer(path: Path) -> list[str]:
    """Writes a tokenizer of whole words, one for each id of the model; its plain words."""
    words = [f"word{number}" for number in range(LAYOUT.vocab_size - len(_MARKUP) - len(_ROLES) - 1)]
    vocabulary = {word: index for index, word in enumerate((*_MARKUP, "[UNK]", *_ROLES, *words))}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(list(_MARKUP))
    library.save(str(path))
    return words


def _row(rng: np.random.Generator, words: list[str]) -> dict[str, str]:
    """A row of 2 to 7 words to read, and 1 to 7 to learn."""
    chosen = rng.choice(words, 14)
    asked, learned = int(rng.integers(2, 8)), int(rng.integers(1, 8))
    return {"prompt": " ".join(chosen[:asked]), "response": " ".join(chosen[7 : 7 + learned])}
