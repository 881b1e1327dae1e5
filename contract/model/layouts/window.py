"""Sliding-window attention (arXiv:2004.05150): which layers have it, and how far it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract import reading
from contract.model.layouts import rope
from contract.model.layouts.base import Size
from contract.model.layouts.fields import CORRECT, MANY, Known
from contract.model.layouts.rope import RopeLayout

FIELDS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})

SILENT: Mapping[str, Any] = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
"""What transformers' Qwen2Config and Qwen3Config take where config.json is silent."""

OPTION = "sliding_window"

LayerType = Literal["full_attention", "sliding_attention"]


class WindowedLayout(RopeLayout):
    """A RoPE decoder whose layers may have a window: those of layer_types, or without it those from max_window_layers on,
    which is the form for all that it can say.

    A window that no sequence reaches is none: sliding_window is None then, and so where no layer has it.
    """

    sliding_window: Size | None = None
    max_window_layers: Annotated[int, Field(ge=0, le=MANY)] = 0
    layer_types: Annotated[tuple[LayerType, ...] | None, Field(strict=False)] = None

    @property
    def options(self) -> tuple[str, ...]:
        """As RopeLayout; sliding_window."""
        return (*super().options, *((OPTION,) if self.sliding_window is not None else ()))

    def window(self, layer: int) -> int | None:
        """The window of a layer."""
        windowed = layer >= self.max_window_layers if self.layer_types is None else self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if windowed else None


class Windows(BaseModel):
    """The four fields as config.json has them."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    num_hidden_layers: Size
    max_position_embeddings: Size
    use_sliding_window: bool
    sliding_window: Size | None
    max_window_layers: Annotated[int, Field(ge=0, le=MANY)]
    layer_types: Annotated[tuple[LayerType, ...] | None, Field(strict=False)]

    @model_validator(mode="after")
    def _go_together(self) -> Windows:
        if self.layer_types is None:
            return self
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries; give one for each of {self.num_hidden_layers} layers")
        if "sliding_attention" in self.layer_types and (not self.use_sliding_window or self.sliding_window is None):
            raise ValueError("layer_types has sliding_attention: use_sliding_window true and a sliding_window go with it")
        return self

    @property
    def canonical(self) -> dict[str, Any]:
        """The fields of a WindowedLayout: one spelling for each function."""
        window = self.sliding_window if self.use_sliding_window else None
        if window is None or window >= self.max_position_embeddings:
            return {}
        first, types = self.max_window_layers, self.layer_types
        if types is not None:
            first = types.index("sliding_attention") if "sliding_attention" in types else len(types)
            if "full_attention" in types[first:]:
                return {"sliding_window": window, "layer_types": types}
        return {"sliding_window": window, "max_window_layers": first} if first < self.num_hidden_layers else {}


def sift(config: Mapping[str, Any], known: Known, where: str) -> dict[str, Any]:
    """As rope.sift, with the four fields of a window in one form.

    Raises: as rope.sift; ContractError or ContractErrors for fields that can't be, or don't go together.
    """
    honoured = rope.sift(config, known, where)
    windows = reading.validated(Windows, honoured, where, remedy=CORRECT)
    return {name: value for name, value in honoured.items() if name not in FIELDS} | windows.canonical
