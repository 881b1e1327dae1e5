"""Tiny random models of transformers, one an architecture, as witnesses of what a field of config.json does.

Sizes differ from one another, biases are not zero, norms' weights not one, eps is large enough to be seen, and the ids are longer
than the window.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_ROPE: Mapping[str, Any] = {
    "vocab_size": 29, "hidden_size": 24, "intermediate_size": 34, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 40, "rms_norm_eps": 0.1, "rope_theta": 50.0,
}  # fmt: skip


@dataclass(frozen=True)
class Witness:
    """An architecture of transformers, and the fields of a tiny model of it."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    fields: Mapping[str, Any]


WITNESSES: Mapping[str, Witness] = {
    "gpt2": Witness(
        GPT2Config, GPT2LMHeadModel,
        {"vocab_size": 29, "n_embd": 24, "n_layer": 3, "n_head": 6, "n_positions": 40, "n_inner": 34, "layer_norm_epsilon": 0.1},
    ),
    "llama": Witness(LlamaConfig, LlamaForCausalLM, _ROPE),
    "mistral": Witness(MistralConfig, MistralForCausalLM, {**_ROPE, "sliding_window": 7}),
    "qwen2": Witness(Qwen2Config, Qwen2ForCausalLM, {**_ROPE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    "qwen3": Witness(Qwen3Config, Qwen3ForCausalLM, {**_ROPE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
}  # fmt: skip

IDS = torch.tensor([[3, 0, 28, 7, 7, 1, 19, 4, 5, 11, 2, 23, 9, 17, 6, 0], [0, 1, 2, 3, 5, 8, 13, 21, 25, 4, 4, 4, 27, 12, 16, 20]])


def fields_of(model_type: str, **changed: Any) -> dict[str, Any]:
    """A tiny model's fields, some of them changed."""
    return {**WITNESSES[model_type].fields, **changed}


def model_of(model_type: str, fields: Mapping[str, Any]) -> PreTrainedModel:
    """A tiny model; its weights depend on their names and shapes alone, whatever the fields say."""
    witness = WITNESSES[model_type]
    model = witness.model._from_config(witness.config(**fields), attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    """What the model computes of IDS."""
    model.config.return_dict = True  # false is about the form of a call's answer, and transformers 5.23 itself trips over it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one only waits for work that is this small
    try:
        with torch.no_grad():
            found: torch.Tensor = model(IDS)[0]
    finally:
        torch.set_num_threads(threads)
    return found


@functools.cache
def plain(model_type: str) -> PreTrainedModel:
    """The tiny model as it is, made once."""
    return model_of(model_type, fields_of(model_type))


def shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Each parameter's shape."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def same_function(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two models have the same parameters and, bit by bit, the same logits."""
    return shapes(one) == shapes(other) and torch.equal(logits(one), logits(other))
