"""A checkpoint's tensors held against its layout: which weight lies where, what is missing, what has no place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from contract.errors import ContractError, brief
from contract.model import weights
from contract.model.headers import Stored
from contract.model.layout import Layout
from contract.model.weights import Weight

DTYPES = ("F32", "BF16", "F16")
"""Dtypes of weights, as safetensors spells them; each widens to float32 exactly."""

LISTED = 32
"""Missing weights that are listed at most."""

HEAD = "lm_head.weight"

_ROPE_BUFFERS = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
"""RoPE's frequencies, which every version computes from rope_theta."""

_GPT2_BUFFERS = re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(bias|masked_bias)")
"""The causal mask, and the value that it masks with."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A weight, and the key and the tensor in which it lies; `weight.key` is without GPT-2's prefix, `key` as it is."""

    weight: Weight
    key: str
    stored: Stored


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What lies where.

    placed: by the weights' names. missing: the first LISTED weights that lie nowhere.
    tied: a head that lies beside the embedding to which config.json ties it; whether it is a copy, only its values can tell.
    strange: keys that have no place, in order.
    """

    placed: Mapping[str, Placed]
    missing: tuple[Weight, ...]
    tied: Stored | None
    strange: tuple[str, ...]


def fit(layout: Layout, stored: Mapping[str, Stored]) -> Fit:
    """Gives every tensor its place.

    Buffers that old versions of transformers saved beside the weights (GPT-2's causal mask, RoPE's frequencies) change nothing and
    are left out.

    Raises:
        ContractError: a weight has another shape than the layout gives it, or a dtype that is not one of DTYPES, or lies under two keys.
    """
    buffers = _GPT2_BUFFERS if layout.model_type == "gpt2" else _ROPE_BUFFERS
    placed: dict[str, Placed] = {}
    tied, strange = None, []
    for key in sorted(stored):
        if buffers.fullmatch(key):
            continue
        found = weights.at(layout, key)
        if key == HEAD and not found:
            tied = stored[key]
        elif not found:
            strange.append(key)
        for weight in found:
            if weight.name in placed:
                raise ContractError(
                    f"{stored[key].file}: {key}",
                    got=f"a key for what {placed[weight.name].key} holds too",
                    allowed="one of the two",
                    remedy="take a checkpoint that was saved in one piece",
                )
            _require_sound(weight, key, stored[key])
            placed[weight.name] = Placed(weight=weight, key=key, stored=stored[key])
    missing = islice((weight for weight in weights.weights(layout) if weight.name not in placed), LISTED)
    return Fit(placed=MappingProxyType(placed), missing=tuple(missing), tied=tied, strange=tuple(strange))


def _require_sound(weight: Weight, key: str, stored: Stored) -> None:
    if stored.dtype not in DTYPES or stored.shape != weight.stored:
        raise ContractError(
            f"{stored.file}: {key}",
            got=f"{stored.dtype}{brief(list(stored.shape))}",
            allowed=f"{', '.join(DTYPES)} of shape {list(weight.stored)}",
            remedy="convert it, or take the config.json that belongs to it",
        )
