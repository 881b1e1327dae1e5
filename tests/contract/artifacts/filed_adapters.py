"""A base of each shape, and an adapter on it that every format can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.artifacts.adapter import Adapter
from tests.contract.artifacts.adapter_cases import GPT2, LLAMA, adapter_on, gpt2_tensors, llama_tensors, write_base

LINEARS = {
    "llama": ("layers.1.q_proj", "layers.0.down_proj", "layers.1.down_proj", "layers.0.up_proj"),
    "gpt2": tuple(f"layers.{layer}.{name}_proj" for layer in (0, 1) for name in ("q", "k", "v", "o", "up", "down")),
}


def base_of(folder: Path, model: str = "llama") -> Path:
    if model == "gpt2":
        return write_base(folder / "base", gpt2_tensors(), GPT2)
    return write_base(folder / "base", llama_tensors(), LLAMA)


def adapter_of(model: str = "llama", **more: Any) -> Adapter:
    """With exceptions that each format can say; on some linears of some layers in Llama, on parts of the fused weight in GPT-2."""
    if model == "gpt2":
        return adapter_on(GPT2, LINEARS["gpt2"], rank=2, alpha=4.0, embed_key="wte.weight", **more)
    facts = {"ranks": {"layers.1.down_proj": 5}, "alphas": {"layers.1.q_proj": 2.5}, "embed_key": "model.embed_tokens.weight"}
    return adapter_on(LLAMA, LINEARS["llama"], **(facts | more))
