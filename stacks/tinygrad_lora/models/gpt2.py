"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"), section by section.

Its q, k and v come as three linears, and every weight is [out, in] (contract/model/keymap.py).

Shape suffixes: B sequences, T tokens, D hidden_size, F intermediate_size, H num_attention_heads.
"""

from __future__ import annotations

from tinygrad import Tensor

from contract.model.layout import GPT2Layout
from stacks.tinygrad_lora.activation import gelu
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models.attention import attend, heads
from stacks.tinygrad_lora.models.section import PLACES, TOKENS, Block, Hook, Pass, Tensors
from stacks.tinygrad_lora.norm import layer_norm

_APPROXIMATE = {"gelu_new": "tanh", "gelu": "none"}


def embed(tensors: Tensors, hook: Hook) -> Tensor:
    """The rows of the tokens and of their positions, added."""
    return hook("embedded", hook("embedding", tensors[TOKENS]) + hook("position_embedding", tensors[PLACES]))


def block(layout: GPT2Layout) -> Block:
    """h = x + Attention(LayerNorm(x)); output = h + down_proj(GELU(up_proj(LayerNorm(h)))).

    Its tensors: attention_norm, attention_norm.bias, mlp_norm, mlp_norm.bias [D], the scalars; its linears: q_proj, k_proj, v_proj,
    o_proj, up_proj, down_proj.
    """
    approximate, H = _APPROXIMATE[layout.activation_function], layout.num_attention_heads

    def function(x_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook, layer: int, shared: Pass) -> Tensor:
        norm_BTD = hook("attention_norm", _norm(x_BTD, "attention_norm", tensors))
        q_BHTE, k_BHTE, v_BHTE = (heads(linears(name, norm_BTD), H) for name in ("q_proj", "k_proj", "v_proj"))
        context_BTD = attend(q_BHTE, k_BHTE, v_BHTE, tensors, hook, layer, shared)
        h_BTD = hook("attention_residual", x_BTD + linears("o_proj", context_BTD))
        up_BTF = linears("up_proj", hook("mlp_norm", _norm(h_BTD, "mlp_norm", tensors)))
        return hook("output", h_BTD + linears("down_proj", hook("activation", gelu(up_BTF, approximate=approximate))))

    return function


def finish(x_BTD: Tensor, tensors: Tensors, hook: Hook) -> Tensor:
    """LayerNorm(x)."""
    return hook("final_norm", _norm(x_BTD, "final_norm", tensors))


def scalars(layout: GPT2Layout, layer: int | None) -> dict[str, float]:
    """The numbers of a block, or of the head (None); layers count from 0."""
    numbers = {"hidden_size": float(layout.hidden_size), "norm_eps": layout.layer_norm_epsilon}
    if layer is None:
        return numbers
    divisor = layout.head_dim**0.5 if layout.scale_attn_weights else 1.0
    return numbers | {"score_divisor": divisor * (layer + 1 if layout.scale_attn_by_inverse_layer_idx else 1)}


def _norm(x_BTD: Tensor, name: str, tensors: Tensors) -> Tensor:
    weight_D, bias_D = tensors[name], tensors[f"{name}.bias"]
    return layer_norm(x_BTD, weight_D, bias_D, width_1=tensors["hidden_size"], eps_1=tensors["norm_eps"])
