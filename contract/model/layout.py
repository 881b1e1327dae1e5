"""What config.json says of a model's function, field by field.

A field that changes the function is honoured or refused by name; one that is not known is refused too, since nobody could say
that it changes nothing. Each architecture has a file in contract/model/layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from contract.errors import ContractError, brief
from contract.model.layouts import gpt2, llama, mistral, qwen2, qwen3
from contract.model.layouts.base import DecoderLayout
from contract.model.layouts.fields import ANOTHER
from contract.model.layouts.gpt2 import GPT2Layout
from contract.model.layouts.llama import LlamaLayout
from contract.model.layouts.mistral import MistralLayout
from contract.model.layouts.qwen2 import Qwen2Layout
from contract.model.layouts.qwen3 import Qwen3Layout
from contract.model.layouts.rope import RopeLayout, RopeScaling

__all__ = [
    "MODEL_TYPES",
    "DecoderLayout",
    "GPT2Layout",
    "Layout",
    "LlamaLayout",
    "MistralLayout",
    "Qwen2Layout",
    "Qwen3Layout",
    "RopeLayout",
    "RopeScaling",
    "read",
]

Layout = GPT2Layout | LlamaLayout | MistralLayout | Qwen2Layout | Qwen3Layout

_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Layout]] = MappingProxyType(
    {"gpt2": gpt2.read, "llama": llama.read, "mistral": mistral.read, "qwen2": qwen2.read, "qwen3": qwen3.read}
)

MODEL_TYPES = tuple(_READERS)
"""The architectures that have a layout, as config.json's model_type names them."""


def read(config: Mapping[str, Any], *, where: str = "config.json") -> Layout:
    """The layout that a parsed config.json describes.

    Raises:
        ContractError: another architecture, a field that is not honoured, not known, missing, or of a value that can't be.
        ContractErrors: several of those.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ContractError(f"{where}: model_type", got=brief(kind), allowed=", ".join(MODEL_TYPES), remedy=ANOTHER)
    return _READERS[kind](config, where)
