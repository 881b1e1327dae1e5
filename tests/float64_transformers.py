"""transformers' RoPE decoders in float64 throughout: their norms and rotary tables compute in float32 whatever the model's dtype is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

NORMS = (modeling_llama.LlamaRMSNorm, modeling_mistral.MistralRMSNorm, modeling_qwen2.Qwen2RMSNorm, modeling_qwen3.Qwen3RMSNorm)
ROTARY = (
    modeling_llama.LlamaRotaryEmbedding, modeling_mistral.MistralRotaryEmbedding, modeling_qwen2.Qwen2RotaryEmbedding,
    modeling_qwen3.Qwen3RotaryEmbedding,
)  # fmt: skip


def clean_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """LlamaRMSNorm.forward without its cast to float32."""
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    normed: torch.Tensor = self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))
    return normed


def clean_rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LlamaRotaryEmbedding.forward with frequencies and angles in float64."""
    config = self.config
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = scaled(1.0 / config.rope_parameters["rope_theta"] ** exponents, config.rope_parameters)
    angles = position_ids[..., None].double() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def scaled(frequencies: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    """modeling_rope_utils' linear and llama3 scaling, in float64."""
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return frequencies
    slow = frequencies / parameters["factor"]
    if kind == "linear":
        return slow
    assert kind == "llama3"
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * slow + smooth * frequencies


@contextmanager
def clean() -> Iterator[None]:
    """Both in their places, in every architecture."""
    with pytest.MonkeyPatch.context() as patch:
        for norm in NORMS:
            patch.setattr(norm, "forward", clean_norm)
        for rotary in ROTARY:
            patch.setattr(rotary, "forward", clean_rotary)
        yield
