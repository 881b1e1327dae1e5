"""The small graphs that tier C draws, by architecture: plain ones, and ones with every option that a layout may have.

Few shapes, since a new one costs a compile. heads x head_dim is not hidden_size where the architecture allows it, no two sizes are equal,
each field has a value of its own; eps and theta are such that they show; sequences are longer than windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, MistralLayout, Qwen2Layout, Qwen3Layout, RopeScaling
from contract.worker.plan import Lora, Nf4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A layout, its LoRA, and how many sequences of how many tokens a batch has."""

    layout: Layout
    lora: Lora
    batch: tuple[int, int]


def _rope(vocabulary: int, hidden: int, inner: int, layers: int, heads: tuple[int, int, int], **fields: Any) -> dict[str, Any]:
    """heads: of the query, of keys and values, and their width."""
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    names = "num_attention_heads", "num_key_value_heads", "head_dim"
    return {**sizes, **dict(zip(names, heads, strict=True)), **fields}


_FIRST = _rope(61, 24, 48, 2, (4, 2, 10), max_position_embeddings=19, rms_norm_eps=0.02, rope_theta=70.0)
_SECOND = _rope(97, 36, 28, 3, (6, 3, 6), max_position_embeddings=64, rms_norm_eps=0.3, rope_theta=1e4)
_LINEAR = RopeScaling(rope_type="linear", factor=2.5)
_LLAMA3 = RopeScaling(rope_type="llama3", factor=3.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=200)
"""Of the second layout's three frequencies one is kept, one slowed down, and one between."""

_GPT2: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 10,
    "num_key_value_heads": 3, "max_position_embeddings": 29, "layer_norm_epsilon": 0.02, "attn_pdrop": 0.1, "embd_pdrop": 0.2,
    "resid_pdrop": 0.3,
}  # fmt: skip
_GPT2_OTHER = _GPT2 | {
    "vocab_size": 97, "hidden_size": 36, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 64, "layer_norm_epsilon": 0.3,
}  # fmt: skip
_USUAL: dict[str, Any] = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "activation_function": "gelu_new"}

_ALL = Lora(rank=3, alpha=7.5)
_SOME = Lora(rank=5, alpha=3.0, rslora=True, targets=("q_proj", "v_proj", "o_proj", "down_proj"))
_PATTERNS = Lora(
    rank=3, alpha=7.5, rank_pattern={"k_proj": 1, "layers.1.q_proj": 4}, alpha_pattern={"o_proj": 1.5, "layers.0.down_proj": 11.0}
)  # fmt: skip
_SOME_PATTERNS = Lora(
    rank=5, alpha=3.0, rslora=True, targets=("q_proj", "v_proj", "up_proj"), rank_pattern={"v_proj": 3, "layers.2.v_proj": 1},
    alpha_pattern={"layers.1.up_proj": 9.0},
)  # fmt: skip

_LONG, _SHORT = (3, 19), (2, 5)
"""The first is as long as its layout has positions; neither has as many sequences as its layout has key heads."""


def _two(first: Layout, second: Layout, *batches: tuple[int, int]) -> tuple[Recipe, Recipe]:
    long, short = batches or (_LONG, _SHORT)
    return Recipe(layout=first, lora=_ALL, batch=long), Recipe(layout=second, lora=_SOME, batch=short)


PLAIN: Mapping[str, tuple[Recipe, ...]] = {
    "llama": _two(
        LlamaLayout(**_FIRST, attention_bias=False, mlp_bias=True, tie_word_embeddings=True),
        LlamaLayout(**_SECOND, attention_bias=True, mlp_bias=False, tie_word_embeddings=False),
    ),
    "mistral": _two(MistralLayout(**_FIRST, tie_word_embeddings=False), MistralLayout(**_SECOND, tie_word_embeddings=True)),
    "qwen2": _two(Qwen2Layout(**_FIRST, tie_word_embeddings=True), Qwen2Layout(**_SECOND, tie_word_embeddings=False)),
    "qwen3": _two(
        Qwen3Layout(**_FIRST, attention_bias=True, tie_word_embeddings=False),
        Qwen3Layout(**_SECOND, attention_bias=False, tie_word_embeddings=True),
    ),
    "gpt2": _two(
        GPT2Layout(**_GPT2, **_USUAL, tie_word_embeddings=True), GPT2Layout(**_GPT2_OTHER, **_USUAL, tie_word_embeddings=False),
        (2, 29), (3, 5),
    ),
}  # fmt: skip
"""By model type: what every stack that declares it has."""


def _both(first: Layout, second: Layout, *batches: tuple[int, int]) -> tuple[Recipe, Recipe]:
    one, other = batches or ((3, 11), (2, 13))
    return Recipe(layout=first, lora=_PATTERNS, batch=one), Recipe(layout=second, lora=_SOME_PATTERNS, batch=other)


OPTIONS: Mapping[str, tuple[Recipe, ...]] = {
    "llama": _both(
        LlamaLayout(**_FIRST, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, rope_scaling=_LINEAR),
        LlamaLayout(**_SECOND, attention_bias=False, mlp_bias=False, tie_word_embeddings=True, rope_scaling=_LLAMA3),
    ),
    "mistral": _both(
        MistralLayout(**_FIRST, tie_word_embeddings=True, sliding_window=4),
        MistralLayout(**_SECOND, tie_word_embeddings=False, sliding_window=3, rope_scaling=_LINEAR),
    ),
    "qwen2": _both(
        Qwen2Layout(**_FIRST, tie_word_embeddings=False, sliding_window=4, max_window_layers=1),
        Qwen2Layout(**_SECOND, tie_word_embeddings=True, rope_scaling=_LLAMA3),
    ),
    "qwen3": _both(
        Qwen3Layout(**_FIRST, attention_bias=False, tie_word_embeddings=True, rope_scaling=_LINEAR),
        Qwen3Layout(
            **_SECOND, attention_bias=True, tie_word_embeddings=False, sliding_window=3,
            layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        ),
    ),
    "gpt2": _both(
        GPT2Layout(**_GPT2, **_USUAL | {"scale_attn_weights": False, "activation_function": "gelu"}, tie_word_embeddings=False),
        GPT2Layout(**_GPT2_OTHER, **_USUAL | {"scale_attn_by_inverse_layer_idx": True}, tie_word_embeddings=True),
        (2, 13), (3, 11),
    ),
}  # fmt: skip
"""By model type: every option that its layouts may have, at least once, and linears that differ in rank and alpha."""

BASES: Mapping[str, Nf4] = {
    "mistral": Nf4(block_size=32, double_quant=False),
    "qwen2": Nf4(block_size=128, offsets_given=True),
    "qwen3": Nf4(block_size=64, double_quant=False),
    "gpt2": Nf4(block_size=32, offsets_given=True),
}
"""By model type: the NF4 base of its graphs; a Llama's is nested, in blocks of 64.

48 inputs, of the first layouts, are a multiple of 16 and of none of these.
"""
