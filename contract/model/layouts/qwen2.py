"""Qwen2 and Qwen2.5: Llama with biases on q, k and v alone, and windows that few models switch on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from contract import reading
from contract.model.layouts import rope, window
from contract.model.layouts.fields import CORRECT, DROPOUT, Known, Only
from contract.model.layouts.window import WindowedLayout


class Qwen2Layout(WindowedLayout):
    """Qwen2's causal graph (arXiv:2407.10671): Llama's, with biases on q, k and v and none on o."""

    model_type: Literal["qwen2"] = "qwen2"

    @property
    def biased(self) -> tuple[str, ...]:
        """The linears that have a bias."""
        return ("q_proj", "k_proj", "v_proj")


KNOWN = Known(
    model_type="qwen2",
    honoured=(frozenset(Qwen2Layout.model_fields) | rope.FIELDS | window.FIELDS) - {"model_type"},
    silent={
        "num_key_value_heads": 32, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, **window.SILENT,
    },
    null=frozenset({"num_key_value_heads", "sliding_window"}),
    only={"attention_dropout": DROPOUT, "hidden_act": Only(values=("silu", "swish")), "use_mrope": Only(values=(False,))},
)  # fmt: skip
"""use_mrope is Qwen2.5's; transformers reads it in no text model."""


def read(config: Mapping[str, Any], where: str) -> Qwen2Layout:
    """The layout of a config.json. Raises: as contract.model.layout.read."""
    return reading.validated(Qwen2Layout, window.sift(config, KNOWN, where), where, remedy=CORRECT)
