"""Qwen3: Qwen2 without its biases, and with a norm of each head's queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from contract import reading
from contract.model.layouts import rope, window
from contract.model.layouts.base import ATTENTION
from contract.model.layouts.fields import CORRECT, DROPOUT, Known, Only
from contract.model.layouts.window import WindowedLayout


class Qwen3Layout(WindowedLayout):
    """Qwen3's causal graph (arXiv:2505.09388): Llama's, with RMSNorm over each head of q and of k, before the rotation.

    head_dim is 128 unless config.json gives its own, whatever hidden_size and num_attention_heads are.
    """

    model_type: Literal["qwen3"] = "qwen3"
    attention_bias: bool = Field(description="q, k, v and o have biases")

    @property
    def biased(self) -> tuple[str, ...]:
        """The linears that have a bias."""
        return ATTENTION if self.attention_bias else ()

    @property
    def head_norms(self) -> tuple[str, ...]:
        """The norms over one head, of width head_dim and eps rms_norm_eps."""
        return ("q_norm", "k_norm")


KNOWN = Known(
    model_type="qwen3",
    honoured=(frozenset(Qwen3Layout.model_fields) | rope.FIELDS | window.FIELDS) - {"model_type"},
    silent={
        "num_key_value_heads": 32, "head_dim": 128, "tie_word_embeddings": False, "attention_bias": False, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, **window.SILENT,
    },
    null=frozenset({"num_key_value_heads", "head_dim", "sliding_window"}),
    only={"attention_dropout": DROPOUT, "hidden_act": Only(values=("silu", "swish"))},
)  # fmt: skip


def read(config: Mapping[str, Any], where: str) -> Qwen3Layout:
    """The layout of a config.json. Raises: as contract.model.layout.read."""
    return reading.validated(Qwen3Layout, window.sift(config, KNOWN, where), where, remedy=CORRECT)
