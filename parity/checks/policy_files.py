"""The files of a run whose shared policy is asked for: a model with hardly a weight, a small tokenizer, and rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract.model.layout import LlamaLayout
from contract.worker.plan import GraphPlan, Lora
from parity.checks import artifact_files
from parity.checks.graph_draws import weights_of
from parity.checks.policy_case import GOLDENS

LAYOUT = LlamaLayout(
    vocab_size=420, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
    max_position_embeddings=2048, rms_norm_eps=0.02, rope_theta=70.0, attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
)  # fmt: skip
"""A vocabulary as large as that of the largest tokenizer of GOLDENS."""

WIDTHS: Mapping[str, tuple[int, int]] = {
    "q_proj": (40, 24), "k_proj": (20, 24), "v_proj": (20, 24), "o_proj": (24, 40), "gate_proj": (40, 24), "up_proj": (40, 24),
    "down_proj": (24, 40),
}  # fmt: skip
"""Linear -> out_features and in_features of that model: heads x head_dim, key-value heads x head_dim, hidden and intermediate size."""

Row = Mapping[str, Any]


def write(folder: Path, rows: Sequence[Row], *, tokenizer: str = "turns", template: str | None = None) -> None:
    """Writes model, tokenizer and rows.

    Args:
        tokenizer: a folder of GOLDENS.
        template: its chat template.
    """
    model = folder / "model"
    plan = GraphPlan(layout=LAYOUT, dtype="float32", lora=Lora(rank=1, alpha=1.0))
    artifact_files.write_base(model, LAYOUT, weights_of(np.random.default_rng(0), plan))
    shutil.copy(GOLDENS / tokenizer / "tokenizer.json", model)
    config = json.loads((GOLDENS / tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {} if template is None else {"chat_template": template}
    (model / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def contract(folder: Path, *, objective: str = "chatml_supervised", **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A contract over them, all that is not given being what this gate has throughout: JSON's values."""
    own: dict[str, dict[str, Any]] = {
        "data": {"train_file": str(folder / "rows.jsonl"), "validation_split": 0.0},
        "adapter": {"method": "lora", "rank": 2, "alpha": 3.0},
        "exec": {"seq_len": 2048, "warmup_steps": 0, "seed": 11},
    }
    fields = {name: {**section, **sections.get(name, {})} for name, section in own.items()}
    model = {"hf_repo": str(folder / "model")}
    return {"lane": "research", "objective": objective, "model": model, "quant": {"base": "none"}, **fields}


def asked(contract_: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """The request for a run's policy."""
    return {"of": "run", "contract": dict(contract_), **values}
