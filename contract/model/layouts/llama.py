"""Llama, and what is built like it (SmolLM2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from contract import reading
from contract.model.layouts import rope
from contract.model.layouts.base import ATTENTION
from contract.model.layouts.fields import CORRECT, DROPOUT, Known, Only
from contract.model.layouts.rope import RopeLayout


class LlamaLayout(RopeLayout):
    """A Llama-type causal graph: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU (arXiv:2302.13971).

    Attributes are named as in config.json; `head_dim` is hidden_size / num_attention_heads unless config.json gives its own.
    """

    model_type: Literal["llama"] = "llama"
    attention_bias: bool = Field(description="q, k, v and o have biases")
    mlp_bias: bool = Field(description="gate, up and down have biases")

    @property
    def biased(self) -> tuple[str, ...]:
        """The linears that have a bias."""
        attention = ATTENTION if self.attention_bias else ()
        return attention + (("gate_proj", "up_proj", "down_proj") if self.mlp_bias else ())


KNOWN = Known(
    model_type="llama",
    honoured=(frozenset(LlamaLayout.model_fields) | rope.FIELDS) - {"model_type"},
    silent={
        "num_key_value_heads": None, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
    },
    only={
        "attention_dropout": DROPOUT,
        "hidden_act": Only(values=("silu", "swish")),
        "pretraining_tp": Only(values=(1, None)),
        "rope_interleaved": Only(values=(False,)),
        "sliding_window": Only(values=(None,)),
    },
    no_effect=frozenset({"is_llama_config"}),
)  # fmt: skip
"""rope_interleaved and is_llama_config are SmolLM2's; transformers reads neither."""


def read(config: Mapping[str, Any], where: str) -> LlamaLayout:
    """The layout of a config.json. Raises: as contract.model.layout.read."""
    return reading.validated(LlamaLayout, rope.sift(config, KNOWN, where), where, remedy=CORRECT)
