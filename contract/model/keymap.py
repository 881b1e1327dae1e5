"""What a weight is called here, and what in a Hugging Face checkpoint.

    embedding                  model.embed_tokens.weight                          wte.weight
    position_embedding                                                            wpe.weight
    final_norm                 model.norm.weight                                  ln_f.weight
    lm_head                    lm_head.weight                                     lm_head.weight
    layers.3.attention_norm    model.layers.3.input_layernorm.weight              h.3.ln_1.weight
    layers.3.mlp_norm          model.layers.3.post_attention_layernorm.weight     h.3.ln_2.weight
    layers.3.q_norm            model.layers.3.self_attn.q_norm.weight             (Qwen3 alone; so k_norm)
    layers.3.q_proj            model.layers.3.self_attn.q_proj.weight             h.3.attn.c_attn.weight, the first third of its columns
    layers.3.o_proj            model.layers.3.self_attn.o_proj.weight             h.3.attn.c_proj.weight
    layers.3.up_proj           model.layers.3.mlp.up_proj.weight                  h.3.mlp.c_fc.weight
    layers.3.down_proj         model.layers.3.mlp.down_proj.weight                h.3.mlp.c_proj.weight
    layers.3.q_proj.bias       model.layers.3.self_attn.q_proj.bias               h.3.attn.c_attn.bias, its first third

In the middle Llama, Mistral, Qwen2 and Qwen3, on the right GPT-2, whose keys come with `transformer.` before them too (but for
lm_head.weight), and whose linears are [in, out]. They are the names of `state_dict()` of transformers' causal language models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GPT2_PREFIX = "transformer."

_NUMBER = "(0|[1-9][0-9]{0,9})"
_FUSED = ("q_proj", "k_proj", "v_proj")

_LLAMA: Mapping[str, str] = MappingProxyType(
    {
        "embedding": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head",
        "attention_norm": "model.layers.{}.input_layernorm", "mlp_norm": "model.layers.{}.post_attention_layernorm",
        **{name: f"model.layers.{{}}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        **{name: f"model.layers.{{}}.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    }
)  # fmt: skip
_QWEN3: Mapping[str, str] = MappingProxyType({**_LLAMA, **{name: f"model.layers.{{}}.self_attn.{name}" for name in ("q_norm", "k_norm")}})
_GPT2: Mapping[str, str] = MappingProxyType(
    {
        "embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f", "lm_head": "lm_head",
        "attention_norm": "h.{}.ln_1", "mlp_norm": "h.{}.ln_2", **dict.fromkeys(_FUSED, "h.{}.attn.c_attn"),
        "o_proj": "h.{}.attn.c_proj", "up_proj": "h.{}.mlp.c_fc", "down_proj": "h.{}.mlp.c_proj",
    }
)  # fmt: skip

_TABLES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"gpt2": _GPT2, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _QWEN3}
)

_NAME = re.compile(rf"(?:layers\.{_NUMBER}\.)?(\w+?)(\.bias)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a weight lies.

    transposed: what lies there is [in, out]. part: it is the one, counted from 0, of so many equal parts of the last dimension.
    """

    key: str
    transposed: bool = False
    part: tuple[int, int] | None = None


def place(name: str, *, model_type: str = "llama") -> Place:
    """Where a weight lies in a checkpoint; GPT-2's without the prefix.

    Raises:
        ValueError: no model of that type has a weight of that name.
    """
    table, match = _TABLES[model_type], _NAME.fullmatch(name)
    if match:
        layer, own, bias = match.groups()
        spot = table.get(own)
        if spot is not None and ("{}" in spot) == (layer is not None) and (not bias or _may_have_bias(own, model_type)):
            conv = model_type == "gpt2" and own.endswith("_proj")
            return Place(
                key=f"{spot.format(layer)}.{'bias' if bias else 'weight'}",
                transposed=conv and not bias,
                part=(_FUSED.index(own), len(_FUSED)) if conv and own in _FUSED else None,
            )
    raise ValueError(f"there is no weight {name!r} in {model_type}; allowed: those of contract/model/weights.py, such as layers.0.q_proj")


def hugging_face_key(name: str, *, model_type: str = "llama") -> str:
    """The key of a weight in a checkpoint. Raises: as `place`."""
    return place(name, model_type=model_type).key


def weight_names(key: str, *, model_type: str = "llama") -> tuple[str, ...]:
    """The weights that a checkpoint's key holds: one, three where q, k and v are fused, none for a key that is no weight."""
    if model_type == "gpt2" and key != f"{GPT2_PREFIX}lm_head.weight":
        key = key.removeprefix(GPT2_PREFIX)
    for spot, names in _INVERSE[model_type].items():
        match = spot.fullmatch(key)
        if match:
            *layer, kind = match.groups()
            prefix, suffix = f"layers.{layer[0]}." if layer else "", ".bias" if kind == "bias" else ""
            return tuple(f"{prefix}{name}{suffix}" for name in names if not suffix or _may_have_bias(name, model_type))
    return ()


def _may_have_bias(own: str, model_type: str) -> bool:
    return own.endswith("_proj") or (model_type == "gpt2" and own.endswith("_norm"))


def _inverted(table: Mapping[str, str]) -> dict[re.Pattern[str], tuple[str, ...]]:
    spots: dict[str, tuple[str, ...]] = {}
    for name, spot in table.items():
        spots[spot] = (*spots.get(spot, ()), name)
    return {
        re.compile(re.escape(spot).replace(r"\{\}", _NUMBER) + r"\.(weight|bias)", re.ASCII): names for spot, names in spots.items()
    }  # fmt: skip


_INVERSE = {model_type: _inverted(table) for model_type, table in _TABLES.items()}
