"""What a weight is called here, and what in a Hugging Face checkpoint of a Llama-type model.

    embedding                  model.embed_tokens.weight
    final_norm                 model.norm.weight
    lm_head                    lm_head.weight
    layers.3.attention_norm    model.layers.3.input_layernorm.weight
    layers.3.mlp_norm          model.layers.3.post_attention_layernorm.weight
    layers.3.q_proj            model.layers.3.self_attn.q_proj.weight        so k, v and o
    layers.3.q_proj.bias       model.layers.3.self_attn.q_proj.bias
    layers.3.gate_proj         model.layers.3.mlp.gate_proj.weight           so up and down

The names on the right are those of transformers' `LlamaForCausalLM.state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_WHOLE: Mapping[str, str] = MappingProxyType(
    {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}
)
_NORMS: Mapping[str, str] = MappingProxyType({"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"})
_LINEARS: Mapping[str, str] = MappingProxyType(
    {
        "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj", "o_proj": "self_attn.o_proj",
        "gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj",
    }
)  # fmt: skip

_IN_A_LAYER = re.compile(r"layers\.(0|[1-9][0-9]*)\.(?:(\w+_norm)|(\w+_proj)(\.bias)?)", re.ASCII)
_HUGGING_FACE_IN_A_LAYER = re.compile(
    r"model\.layers\.(0|[1-9][0-9]*)\.(?:(\w+layernorm)\.weight|(\w+\.\w+_proj)\.(weight|bias))", re.ASCII
)

_FROM_WHOLE, _FROM_NORMS, _FROM_LINEARS = ({theirs: ours for ours, theirs in table.items()} for table in (_WHOLE, _NORMS, _LINEARS))


def hugging_face_key(name: str) -> str:
    """The key of a weight in a checkpoint.

    Raises:
        ValueError: no Llama-type model has a weight of that name.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    match = _IN_A_LAYER.fullmatch(name)
    if match:
        layer, norm, linear, bias = match.groups()
        if norm in _NORMS:
            return f"model.layers.{layer}.{_NORMS[norm]}.weight"
        if linear in _LINEARS:
            return f"model.layers.{layer}.{_LINEARS[linear]}.{'bias' if bias else 'weight'}"
    raise ValueError(f"there is no weight {name!r}; allowed: those of contract/worker/graph.py, such as layers.0.q_proj")


def weight_name(key: str) -> str | None:
    """The weight that a checkpoint's key holds; None for a key that is no weight of a Llama-type model."""
    if key in _FROM_WHOLE:
        return _FROM_WHOLE[key]
    match = _HUGGING_FACE_IN_A_LAYER.fullmatch(key)
    if match:
        layer, norm, linear, kind = match.groups()
        if norm in _FROM_NORMS:
            return f"layers.{layer}.{_FROM_NORMS[norm]}"
        if linear in _FROM_LINEARS:
            return f"layers.{layer}.{_FROM_LINEARS[linear]}{'.bias' if kind == 'bias' else ''}"
    return None
