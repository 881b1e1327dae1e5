"""Mistral: Llama without biases, and with a window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from contract import reading
from contract.model.layouts import rope, window
from contract.model.layouts.base import Size
from contract.model.layouts.fields import CORRECT, DROPOUT, Known, Only
from contract.model.layouts.rope import RopeLayout


class MistralLayout(RopeLayout):
    """Mistral's causal graph (arXiv:2310.06825): Llama's, where in every layer a token sees the `sliding_window` last ones.

    A window that no sequence reaches (max_position_embeddings or more) is none, and read as None.
    """

    model_type: Literal["mistral"] = "mistral"
    sliding_window: Size | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """As RopeLayout; sliding_window."""
        return (*super().options, *((window.OPTION,) if self.sliding_window is not None else ()))

    def window(self, layer: int) -> int | None:
        """The window of a layer: the same in all of them."""
        return self.sliding_window


KNOWN = Known(
    model_type="mistral",
    honoured=(frozenset(MistralLayout.model_fields) | rope.FIELDS) - {"model_type"},
    silent={
        "num_key_value_heads": 8, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    null=frozenset({"num_key_value_heads", "sliding_window"}),
    only={"attention_dropout": DROPOUT, "hidden_act": Only(values=("silu", "swish"))},
)  # fmt: skip


def read(config: Mapping[str, Any], where: str) -> MistralLayout:
    """The layout of a config.json. Raises: as contract.model.layout.read."""
    layout = reading.validated(MistralLayout, rope.sift(config, KNOWN, where), where, remedy=CORRECT)
    reached = layout.sliding_window is not None and layout.sliding_window < layout.max_position_embeddings
    return layout if reached else layout.model_copy(update={"sliding_window": None})
