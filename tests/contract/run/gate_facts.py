"""Facts of a run that every gate lets through, and what changes them; no file is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract.model import layout
from contract.model.layout import Layout
from contract.model.preflight import Inspected, ModelFiles, ProxyStack
from contract.run.device_memory import DeviceMemory
from contract.run.facts import Facts, Rows
from contract.run.memory import Estimate
from contract.run.spec import FineTuneContract
from contract.run.survey import inferred
from contract.worker.capabilities import Capabilities

CONTRACT: Mapping[str, Any] = {"model": {"hf_repo": "somewhere"}, "data": {"train_file": "rows.jsonl"}}

TRAINING: Mapping[str, Any] = {
    "inferred_for": [{"lane": "production", "methods": ["qlora"], "bases": ["nf4"]}],
    "bases": {"qlora": ["nf4"], "lora": ["none"]},
    "tokenizers": ["hf"],
    "graphs": {"full_causal": ["llama"], "qlora_proxy_v1": ["llama"]},
    "layout_options": ["rope_scaling.linear"],
    "compute_dtypes": ["float32"],
    "optimizers": ["adamw"],
    "dropout": False,
    "packing": False,
    "patterns": False,
}
ABLE = {"dropout": True, "packing": True, "patterns": True, "tokenizers": ["hf", "vox"], "compute_dtypes": ["float32", "bfloat16"]}

CONFIG: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
}  # fmt: skip


def capabilities(lane: str = "production", *, training: Mapping[str, Any] | None = TRAINING, **changed: Any) -> Capabilities:
    return Capabilities.model_validate(
        {
            "protocol": 1, "lane": lane, "extra": "alpha", "packages": ["alpha-kernels"], "devices": ["CPU", "CUDA"],
            "requests": ["probe", "train"], "operations": {}, "nf4_block_sizes": [64, 128],
            "training": None if training is None else dict(training), **changed,
        }
    )  # fmt: skip


def stacks(**trained: Any) -> dict[str, Capabilities]:
    """`alpha` of the production lane, with some fields of `training` changed, and `beta` of the research lane."""
    research = {**TRAINING, **ABLE, "inferred_for": [{"lane": "research", "methods": ["lora"]}], "bases": {"lora": ["none", "nf4"]}}
    return {"alpha": capabilities(training={**TRAINING, **trained}), "beta": capabilities("research", training=research)}


def contract(**changed: Any) -> FineTuneContract:
    """The contract of defaults, with dotted fields (exec__seq_len) changed."""
    value = copy.deepcopy(dict(CONTRACT))
    for name, new in changed.items():
        *sections, field = name.split("__")
        spot = value
        for section in sections:
            spot = spot.setdefault(section, {})
        spot[field] = new
    return FineTuneContract.model_validate(value)


def inspected(model: Layout | None = None, *, proxy: tuple[int, int] = (3, 3), **changed: Any) -> Inspected:
    """A model of three layers; `proxy`: middle keys expected and matched."""
    files = ModelFiles(folder=None, config_json=Path("config.json"), tokenizer_json=None, shards=(), index=None)
    missing = tuple(f"model.layers.{number}.self_attn.o_proj.weight" for number in range(min(proxy[0] - proxy[1], 40)))
    stack = ProxyStack(embed_key="model.embed_tokens.weight", expected=proxy[0], matched=proxy[1], missing=missing)
    return Inspected(
        files=files, layout=model or model_layout(), proxy=stack, dtypes=("F32",), parameters=1, nbytes=4, **changed
    )  # fmt: skip


def model_layout(*without: str, **changed: Any) -> Layout:
    fields = {**CONFIG, **changed}
    return layout.read({name: value for name, value in fields.items() if name not in without})


def estimate(**shares: int) -> Estimate:
    names = dict.fromkeys(Estimate.model_fields, 0)
    return Estimate(**{**names, **shares})


def facts(changed: Mapping[str, Any] | None = None, *, trained: Mapping[str, Any] | None = None, **found: Any) -> Facts:
    """Facts.

    Args:
        changed: dotted fields of the contract. trained: fields of alpha's `training`. found: facts in place of the sound ones.
    """
    run = contract(**changed or {})
    known = found.pop("stacks", None) or stacks(**trained or {})
    sound: dict[str, Any] = {
        "missing": dict.fromkeys(known, ()), "has_tokenizer": True, "inspected": inspected(),
        "rows": Rows(total=9999, kept=9000, held_back=450),
        "steps": 5000, "estimate": estimate(activations=100),
        "device_memory": DeviceMemory(total=1000, available=1000, source="main memory"),
    }  # fmt: skip
    return Facts(contract=run, stacks=known, inferred=inferred(run, known), **{**sound, **found})
