"""config.json, field by field: honoured, known to change nothing, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.errors import UserError
from contract.model import layout, zoo
from contract.model.layout import LlamaLayout

SIZES: Mapping[str, Any] = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 5, "num_attention_heads": 6,
}  # fmt: skip
"""Fields without a default."""

FULL: Mapping[str, Any] = {
    **SIZES, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 77, "rms_norm_eps": 3e-5, "rope_theta": 54321.0,
    "attention_bias": True, "mlp_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
"""A distinct value in every field."""

NO_EFFECT: Mapping[str, Any] = {
    "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": [2, 3],
    "initializer_range": 0.1, "is_llama_config": True, "pad_token_id": None, "torch_dtype": "float16", "transformers.js_config": {},
    "transformers_version": "4.40", "use_cache": False,
}  # fmt: skip


def read(fields: Mapping[str, Any], **changed: Any) -> LlamaLayout:
    return layout.read({"model_type": "llama", **fields, **changed})


def refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        layout.read(config, where="some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert "\n" not in str(caught.value)


def values(model: LlamaLayout) -> dict[str, Any]:
    return model.model_dump(exclude={"model_type"})


# Honoured


def test_smollm2_as_it_is_published() -> None:
    assert values(layout.read(zoo.locate("smollm2-135m").config)) == {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    }  # fmt: skip


def test_every_field_is_read_in_its_own_place() -> None:
    assert values(read(FULL)) == FULL


@given(
    groups=st.integers(1, 8),
    key_value_heads=st.integers(1, 8),
    half=st.integers(1, 64),
    sizes=st.fixed_dictionaries({name: st.integers(1, 10**6) for name in SIZES if name != "num_attention_heads"}),
    positions=st.integers(1, 10**6),
    eps=st.floats(0, 1, exclude_min=True),
    theta=st.integers(1, 10**9) | st.floats(0, 1e12, exclude_min=True),
    flags=st.fixed_dictionaries({name: st.booleans() for name in ("attention_bias", "mlp_bias", "tie_word_embeddings")}),
)
def test_whatever_a_model_may_have_is_read_as_it_stands(
    groups: int,
    key_value_heads: int,
    half: int,
    sizes: dict[str, int],
    positions: int,
    eps: float,
    theta: float,
    flags: dict[str, bool],
) -> None:
    config = {
        **sizes, **flags, "num_attention_heads": groups * key_value_heads, "num_key_value_heads": key_value_heads, "head_dim": 2 * half,
        "max_position_embeddings": positions, "rms_norm_eps": eps, "rope_theta": theta,
    }  # fmt: skip
    assert values(layout.read(json.loads(json.dumps(config | {"model_type": "llama"})))) == config


def test_silence_means_what_it_means_to_transformers() -> None:
    from transformers import LlamaConfig

    witness = LlamaConfig(**SIZES)
    ours = values(read(SIZES))
    assert ours.pop("rope_theta") == witness.rope_parameters["rope_theta"]
    assert ours == {name: getattr(witness, name) for name in ours}
    assert (ours["num_key_value_heads"], ours["head_dim"]) == (6, 8)


def test_what_transformers_saves_is_read_back() -> None:
    """Release 5 writes rope_parameters, and no rope_theta."""
    from transformers import LlamaConfig

    fields = {name: value for name, value in FULL.items() if name != "rope_theta"}
    saved = json.loads(LlamaConfig(**fields, rope_parameters={"rope_type": "default", "rope_theta": 54321.0}).to_json_string())
    assert "rope_theta" not in saved
    assert values(layout.read(saved)) == FULL


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("parameters", [{"rope_theta": 54321.0}, {"rope_theta": 54321, "rope_type": "default"}])
def test_rope_theta_from_rope_parameters(parameters: dict[str, Any], alone: bool) -> None:
    fields = {name: value for name, value in FULL.items() if name != "rope_theta" or not alone}
    assert read(fields, rope_parameters=parameters).rope_theta == 54321.0


@pytest.mark.parametrize("parameters", [None, {}, {"rope_type": "default"}])
def test_rope_parameters_that_say_nothing_of_theta(parameters: dict[str, Any] | None) -> None:
    assert read(FULL, rope_parameters=parameters).rope_theta == 54321.0


@pytest.mark.parametrize("name", ["num_key_value_heads", "head_dim", "rope_theta", "tie_word_embeddings"])
def test_null_is_silence(name: str) -> None:
    assert read(FULL, **{name: None}) == read({other: value for other, value in FULL.items() if other != name})


# Known to change nothing


@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_field_that_says_nothing_of_the_function(name: str) -> None:
    assert read(FULL, **{name: NO_EFFECT[name]}) == read(FULL)


@pytest.mark.parametrize(
    ("name", "harmless", "others"),
    [
        ("attention_dropout", (0, 0.0), (0.1, None)),
        ("hidden_act", ("silu",), ("gelu", "relu", "gelu_pytorch_tanh", None)),
        ("pretraining_tp", (1,), (2, None)),
        ("rope_interleaved", (False,), (True,)),
        ("rope_scaling", (None,), ({"type": "linear", "factor": 2.0}, {"rope_type": "llama3"}, [])),
        ("sliding_window", (None,), (4096, 0)),
    ],
)
def test_a_field_with_but_one_harmless_value(name: str, harmless: tuple[Any, ...], others: tuple[Any, ...]) -> None:
    for value in harmless:
        assert read(FULL, **{name: value}) == read(FULL)
    for value in others:
        with pytest.raises(UserError, match=f"{name} is .*, which is not honoured; allowed: .*; take another checkpoint") as caught:
            read(FULL, **{name: value})
        assert repr(value) in str(caught.value)


# Refused


KNOWN = {*FULL, *NO_EFFECT, "model_type", "attention_dropout", "hidden_act", "pretraining_tp", "rope_interleaved", "rope_scaling"}


@pytest.mark.parametrize(
    "name", ["quantization_config", "partial_rotary_factor", "logit_scale", "use_qk_norm", "Hidden_size", "num_experts"]
)
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    refused({"model_type": "llama", **FULL, name: 1}, f"there is no field '{name}' that is honoured, and it may change the function")


@given(
    name=st.text(max_size=20).filter(lambda name: name not in {*KNOWN, "sliding_window", "rope_parameters"}),
    value=st.none() | st.integers(),
)
def test_any_unknown_field_is_refused(name: str, value: int | None) -> None:
    with pytest.raises(UserError) as caught:
        read(FULL, **{name: value})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "Llama", "", None, ["llama"]])
def test_another_architecture(kind: object) -> None:
    refused({**FULL, "model_type": kind}, "model_type is .*; allowed: llama; take another checkpoint")


def test_no_architecture() -> None:
    refused(FULL, "model_type is None; allowed: llama")


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_size_is_named(name: str) -> None:
    refused(
        {"model_type": "llama", **{other: value for other, value in FULL.items() if other != name}}, f": {name}: Field required; set it"
    )


@pytest.mark.parametrize("name", [name for name, value in FULL.items() if isinstance(value, int) and not isinstance(value, bool)])
@pytest.mark.parametrize("value", [0, -1, 2.5, 48.0, "48", True, [48]])
def test_a_size_that_can_not_be(name: str, value: object) -> None:
    refused({"model_type": "llama", **FULL, name: value}, f": {name}: .*got .*; set it right, or take another checkpoint")


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, 0.0, -1e-5, float("inf"), float("nan"), "1e-5", True])
def test_a_number_that_can_not_be(name: str, value: object) -> None:
    refused({"model_type": "llama", **FULL, name: value}, f": {name}: .*got .*; set it right")


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
@pytest.mark.parametrize("value", [0, 1, "false", "yes", []])
def test_a_flag_that_is_none(name: str, value: object) -> None:
    refused({"model_type": "llama", **FULL, name: value}, f": {name}: .*got .*; set it right")


def test_heads_that_do_not_share_keys_evenly() -> None:
    refused({"model_type": "llama", **FULL, "num_key_value_heads": 4}, r"heads is 6, must be a multiple of num_key_value_heads \(4\); set")


def test_an_odd_head_dim() -> None:
    refused({"model_type": "llama", **FULL, "head_dim": 9}, "head_dim: .*multiple of 2, got 9")


@pytest.mark.parametrize(("hidden", "heads"), [(50, 6), (48, 0), ("48", 6), (None, 6), (48, None)])
def test_no_head_dim_and_none_to_be_found(hidden: object, heads: object) -> None:
    fields = {**SIZES, "hidden_size": hidden, "num_attention_heads": heads, "model_type": "llama"}
    refused(fields, "has no head_dim, and hidden_size .* is no multiple of num_attention_heads .*; give head_dim")


@pytest.mark.parametrize(
    "parameters", ["default", [], {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, {"rope_type": "llama3"}, {"rope_type": None}]
)
def test_rope_that_is_scaled(parameters: object) -> None:
    refused(
        {"model_type": "llama", **FULL, "rope_parameters": parameters}, "rope_parameters is .*, which is not honoured; allowed: rope_type"
    )


def test_rope_parameters_with_more_than_theta() -> None:
    parameters = {"rope_type": "default", "rope_theta": 54321.0, "partial_rotary_factor": 0.5}
    refused({"model_type": "llama", **FULL, "rope_parameters": parameters}, "rope_parameters has 'partial_rotary_factor', which is not")


def test_two_values_of_theta() -> None:
    fields = {"model_type": "llama", **FULL, "rope_parameters": {"rope_theta": 1e4}}
    refused(fields, "rope_theta is 54321.0, in rope_parameters it is 10000.0; leave the right one alone")


def test_a_layout_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read(FULL).head_dim = 12  # type: ignore[misc]
