"""transformers' Llama in float64 throughout: its norm and rotary tables compute in float32 whatever the model's dtype is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama


def clean_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """LlamaRMSNorm.forward without its cast to float32."""
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    normed: torch.Tensor = self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))
    return normed


def clean_rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LlamaRotaryEmbedding.forward with frequencies and angles in float64."""
    config = self.config
    inv_freq = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = position_ids[..., None].double() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


@contextmanager
def clean() -> Iterator[None]:
    """Both in their places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", clean_norm)
        patch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", clean_rotary)
        yield
