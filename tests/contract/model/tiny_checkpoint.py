"""A tiny Llama checkpoint in a folder: sound, or as a test changes it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.errors import ContractError
from contract.model.checkpoint import open_checkpoint

CONFIG: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 14, "hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "rope_theta": 5e4, "attention_bias": True, "mlp_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Q, V = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj.weight"

Tensors = dict[str, np.ndarray]


def weights(**changed: Any) -> Tensors:
    """Random weights by their keys: 10 wide, 4 heads of 6 over 2 key heads, so that no two shapes can be taken for each other."""
    rng, config = np.random.default_rng(3), dict(CONFIG) | changed
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], 10), "model.norm.weight": (10,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], 10)
    for layer in range(config["num_hidden_layers"]):
        linears = {"self_attn.q_proj": (24, 10), "self_attn.k_proj": (12, 10), "self_attn.v_proj": (12, 10), "self_attn.o_proj": (10, 24)}
        linears |= {"mlp.gate_proj": (20, 10), "mlp.up_proj": (20, 10), "mlp.down_proj": (10, 20)}
        for name, shape in linears.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            if config["attention_bias"] and name.startswith("self_attn"):
                shapes[f"model.layers.{layer}.{name}.bias"] = shape[:1]
        shapes |= {f"model.layers.{layer}.{name}layernorm.weight": (10,) for name in ("input_", "post_attention_")}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


SQUARE: Mapping[str, int] = {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 2}
"""Fields of a config.json whose o_proj is square, as the proxy graph wants it."""


def squared(tensors: Tensors) -> Tensors:
    """Weights that go with SQUARE, cut from others."""
    rows = {"q_proj": 10, "k_proj": 2, "v_proj": 2}
    cut = {key: tensor[: rows.get(key.split(".")[-2], len(tensor))] for key, tensor in tensors.items()}
    return {key: np.ascontiguousarray(tensor[:, :10]) if ".o_proj.w" in key else tensor for key, tensor in cut.items()}


def write(folder: Path, tensors: Tensors | None = None, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(CONFIG) | changed))
    save_file(weights(**changed) if tensors is None else tensors, folder / WEIGHTS)
    return folder


def write_sharded(folder: Path, tensors: Tensors, *, shards: int = 3) -> dict[str, str]:
    """Writes the tensors in turn into the shards; returns the index's weight_map."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(CONFIG)))
    names = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
    write_index(folder, where)
    return where


def write_index(folder: Path, where: Mapping[str, object]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def write_raw(path: Path, header: str, content: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + content)


def refused(folder: Path, message: str) -> str:
    with pytest.raises(ContractError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.place.startswith(str(folder))
    return str(caught.value)
