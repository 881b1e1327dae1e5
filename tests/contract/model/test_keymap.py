"""Names of weights, both ways, against a table written here and against transformers' own state dict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.model.keymap import hugging_face_key, weight_names
from contract.model.layout import LlamaLayout
from contract.worker import graph
from contract.worker.plan import GraphPlan, Lora

TABLE = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "layers.{}.attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers.{}.mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.q_proj": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.k_proj": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.v_proj": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.o_proj": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.gate_proj": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.up_proj": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.down_proj": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.q_proj.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.{}.k_proj.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.{}.v_proj.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.{}.o_proj.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.{}.gate_proj.bias": "model.layers.{}.mlp.gate_proj.bias",
    "layers.{}.up_proj.bias": "model.layers.{}.mlp.up_proj.bias",
    "layers.{}.down_proj.bias": "model.layers.{}.mlp.down_proj.bias",
}


def layout(*, layers: int = 2, attention_bias: bool, mlp_bias: bool, tied: bool) -> LlamaLayout:
    return LlamaLayout(
        vocab_size=11, hidden_size=24, intermediate_size=10, num_hidden_layers=layers, num_attention_heads=6, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=9, rms_norm_eps=1e-5, rope_theta=1e4, attention_bias=attention_bias, mlp_bias=mlp_bias,
        tie_word_embeddings=tied,
    )  # fmt: skip


@given(name=st.sampled_from(sorted(TABLE)), layer=st.integers(0, 10**6))
def test_the_table_both_ways(name: str, layer: int) -> None:
    ours, theirs = name.format(layer), TABLE[name].format(layer)
    for model_type in ("llama", "mistral", "qwen2", "qwen3"):
        assert hugging_face_key(ours, model_type=model_type) == theirs
        assert weight_names(theirs, model_type=model_type) == (ours,)
    assert (hugging_face_key(ours), weight_names(theirs)) == (theirs, (ours,))


GPT2_TABLE = {
    "wte.weight": ("embedding",),
    "wpe.weight": ("position_embedding",),
    "ln_f.weight": ("final_norm",),
    "ln_f.bias": ("final_norm.bias",),
    "lm_head.weight": ("lm_head",),
    "h.{}.ln_1.weight": ("layers.{}.attention_norm",),
    "h.{}.ln_1.bias": ("layers.{}.attention_norm.bias",),
    "h.{}.ln_2.weight": ("layers.{}.mlp_norm",),
    "h.{}.ln_2.bias": ("layers.{}.mlp_norm.bias",),
    "h.{}.attn.c_attn.weight": ("layers.{}.q_proj", "layers.{}.k_proj", "layers.{}.v_proj"),
    "h.{}.attn.c_attn.bias": ("layers.{}.q_proj.bias", "layers.{}.k_proj.bias", "layers.{}.v_proj.bias"),
    "h.{}.attn.c_proj.weight": ("layers.{}.o_proj",),
    "h.{}.attn.c_proj.bias": ("layers.{}.o_proj.bias",),
    "h.{}.mlp.c_fc.weight": ("layers.{}.up_proj",),
    "h.{}.mlp.c_fc.bias": ("layers.{}.up_proj.bias",),
    "h.{}.mlp.c_proj.weight": ("layers.{}.down_proj",),
    "h.{}.mlp.c_proj.bias": ("layers.{}.down_proj.bias",),
}


@given(key=st.sampled_from(sorted(GPT2_TABLE)), layer=st.integers(0, 10**6))
def test_the_table_of_gpt2_both_ways(key: str, layer: int) -> None:
    names = tuple(name.format(layer) for name in GPT2_TABLE[key])
    assert {hugging_face_key(name, model_type="gpt2") for name in names} == {key.format(layer)}
    assert weight_names(key.format(layer), model_type="gpt2") == names
    assert weight_names(f"transformer.{key.format(layer)}", model_type="gpt2") == (names if key != "lm_head.weight" else ())
    assert weight_names(key.format(layer)) == (names if key == "lm_head.weight" else ())


def test_norms_of_heads_are_qwen3s_alone() -> None:
    for name in ("q_norm", "k_norm"):
        key = f"model.layers.4.self_attn.{name}.weight"
        assert (hugging_face_key(f"layers.4.{name}", model_type="qwen3"), weight_names(key, model_type="qwen3")) == (
            key,
            (f"layers.4.{name}",),
        )
        assert weight_names(key, model_type="qwen2") == ()


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize("mlp_bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_names_and_shapes_of_transformers(attention_bias: bool, mlp_bias: bool, tied: bool) -> None:
    """The state dict of a model with 6 heads of 8 over a width of 24, so that no shape is square by accident."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = layout(attention_bias=attention_bias, mlp_bias=mlp_bias, tied=tied)
    with torch.device("meta"):
        witness = LlamaForCausalLM(LlamaConfig(**ours.model_dump(exclude={"model_type", "rope_theta", "rope_scaling"}))).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in witness.items() if not (tied and key == "lm_head.weight")}
    plan = GraphPlan(layout=ours, dtype="float32", lora=Lora(rank=1, alpha=1))
    assert {hugging_face_key(name): shape for name, (shape, _) in graph.weights(plan).items()} == shapes


NO_WEIGHTS = (
    "", "embedding.bias", "embedding.weight", "layers.0", "layers.0.", "layers.0.q_proj.weight", "layers.0.q_proj.bias.bias",
    "layers.0.attention_norm.bias", "layers.0.q_norm", "layers.0.input_layernorm", "layers.00.q_proj", "layers.-1.q_proj",
    "layers.q_proj", "layers.٣.q_proj", "layers.0.q_proj\n", "xlayers.0.q_proj", "layers.0.q_proj.lora_a", "model.norm.weight",
)  # fmt: skip


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no weight .*; allowed: ") as caught:
        hugging_face_key(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *sorted(TABLE.keys() - {"lm_head"}), "", "model.norm.bias", "norm.weight", "lm_head.bias", "model.layers.01.mlp.up_proj.weight",
        "model.layers.0.self_attn.gate_proj.weight", "model.layers.0.mlp.q_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.q_norm.weight", "model.layers.0.input_layernorm.bias", "model.layers.0.self_attn.q_proj.weight\n",
        "base_model.model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attnXq_proj.weight",
    ],
)  # fmt: skip
def test_a_key_that_is_no_weight_has_no_name(key: str) -> None:
    assert weight_names(key.format(0)) == ()


@pytest.mark.parametrize(
    "key",
    ["", "transformer.", "transformer.transformer.wte.weight", "wte.bias", "h.0.attn.bias", "h.0.attn.masked_bias", "h.0.attn.c_attn",
     "h.00.ln_1.weight", "h.0.attn.c_attn.weight.weight", "h.0.crossattention.c_attn.weight", "h.99999999999.ln_1.weight",
     "lm_head.bias", "model.norm.weight", "H.0.ln_1.weight"],
)  # fmt: skip
def test_a_key_that_is_no_weight_of_gpt2(key: str) -> None:
    assert weight_names(key, model_type="gpt2") == ()


@pytest.mark.parametrize(
    "name", ["layers.0.gate_proj", "layers.0.q_norm", "embedding.bias", "layers.0.embedding", "q_proj", "lm_head.bias"]
)
def test_a_name_that_gpt2_lacks(name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no weight .* in gpt2; allowed: "):
        hugging_face_key(name, model_type="gpt2")


PARTS = ("model", "layers", "0", "7", "self_attn", "mlp", "q_proj", "up_proj", "input_layernorm", "norm", "weight", "bias", "lm_head")


@given(key=st.lists(st.sampled_from(PARTS), max_size=6).map(".".join))
def test_only_a_key_that_maps_back_has_a_name(key: str) -> None:
    assert all(hugging_face_key(name) == key for name in weight_names(key))
