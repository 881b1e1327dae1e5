"""config.json, field by field: honoured, known to change nothing, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.errors import ContractError, ContractErrors, brief
from contract.model import layout, zoo
from contract.model.layout import LlamaLayout
from contract.model.layouts import llama

SIZES: Mapping[str, Any] = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 5, "num_attention_heads": 6,
}  # fmt: skip
"""Fields without a default."""

FULL: Mapping[str, Any] = {
    **SIZES, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 77, "rms_norm_eps": 3e-5, "rope_theta": 54321.0,
    "attention_bias": True, "mlp_bias": False, "tie_word_embeddings": True, "rope_scaling": None,
}  # fmt: skip
"""A distinct value in every field."""

NO_EFFECT: Mapping[str, Any] = {
    "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": [2, 3],
    "initializer_range": 0.1, "is_llama_config": True, "pad_token_id": None, "torch_dtype": "float16", "transformers.js_config": {},
    "transformers_version": "4.40", "use_cache": False,
}  # fmt: skip


def read(fields: Mapping[str, Any], **changed: Any) -> LlamaLayout:
    found = layout.read({"model_type": "llama", **fields, **changed})
    assert isinstance(found, LlamaLayout)
    return found


def refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        layout.read(config, where="some/config.json")
    assert str(caught.value).startswith("some/config.json: ")
    assert "\n" not in str(caught.value)


def values(model: layout.Layout) -> dict[str, Any]:
    return model.model_dump(exclude={"model_type"})


# Honoured


def test_smollm2_as_it_is_published() -> None:
    assert values(layout.read(zoo.locate("smollm2-135m").config)) == {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "rope_scaling": None,
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
    assert values(layout.read(json.loads(json.dumps(config | {"model_type": "llama"})))) == config | {"rope_scaling": None}


def test_silence_means_what_it_means_to_transformers() -> None:
    from transformers import LlamaConfig

    witness = LlamaConfig(**SIZES)
    ours = values(read(SIZES))
    assert {"rope_theta": ours.pop("rope_theta"), "rope_type": "default"} == witness.rope_parameters
    assert ours.pop("rope_scaling") is None
    assert ours == {name: getattr(witness, name) for name in ours}
    assert (ours["num_key_value_heads"], ours["head_dim"]) == (6, 8)


def test_what_transformers_saves_is_read_back() -> None:
    """Release 5 writes rope_parameters, and no rope_theta."""
    from transformers import LlamaConfig

    fields = {name: value for name, value in FULL.items() if not name.startswith("rope")}
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
        ("hidden_act", ("silu", "swish"), ("gelu", "relu", "gelu_pytorch_tanh", None)),
        ("pretraining_tp", (1, None), (2, True)),
        ("rope_interleaved", (False,), (True, 0)),
        ("sliding_window", (None,), (4096, 0)),
    ],
)
def test_a_field_with_but_one_harmless_value(name: str, harmless: tuple[Any, ...], others: tuple[Any, ...]) -> None:
    for value in harmless:
        assert read(FULL, **{name: value}) == read(FULL)
    for value in others:
        with pytest.raises(ContractError, match=f"^config.json: {name}: got .*, not honoured; allowed: .*; ") as caught:
            read(FULL, **{name: value})
        assert repr(value) in str(caught.value)


# Refused


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("partial_rotary_factor", ""),
        ("logit_scale", ""),
        ("use_qk_norm", ""),
        ("Hidden_size", " (nearest: hidden_size)"),
        ("head_dims", " (nearest: head_dim)"),
    ],
)
def test_an_unknown_field_is_refused_by_name(name: str, nearest: str) -> None:
    with pytest.raises(ContractError) as caught:
        layout.read({"model_type": "llama", **FULL, name: 1}, where="some/config.json")
    assert str(caught.value).startswith(f"some/config.json: '{name}': got 1 in a field that is not known, and may change the function; ")
    assert f"allowed: the fields of llama{nearest}; remove it" in str(caught.value) or not nearest


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("quantization_config", {"bits": 4}, "quantised already"),
        ("auto_map", {"AutoModel": "x.Y"}, "code of its own"),
        ("is_causal", False, "another"),
    ],
)
def test_what_no_architecture_may_have_says_why(name: str, value: object, why: str) -> None:
    refused({"model_type": "llama", **FULL, name: value}, f": {name}: got .*, not honoured; .*{why}")


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ContractErrors) as caught:
        read(FULL, num_experts=8, hidden_act="relu", attention_dropout=0.5)
    assert [fault.place for fault in caught.value.faults] == [
        "config.json: 'num_experts'", "config.json: attention_dropout", "config.json: hidden_act",
    ]  # fmt: skip


def test_many_unknown_fields_do_not_take_long() -> None:
    with pytest.raises(ContractErrors) as caught:
        read(FULL, **{f"field{i}": i for i in range(100_000)})
    assert len(caught.value.faults) == 8


@given(
    name=st.text(max_size=20).filter(lambda name: name not in llama.KNOWN.names),
    value=st.none() | st.integers(),
)
def test_any_unknown_field_is_refused(name: str, value: int | None) -> None:
    with pytest.raises(ContractError) as caught:
        read(FULL, **{name: value})
    assert caught.value.place == f"config.json: {brief(name)}"


@pytest.mark.parametrize("kind", ["gemma2", "qwen2_moe", "Llama", "", None, ["llama"]])
def test_another_architecture(kind: object) -> None:
    refused({**FULL, "model_type": kind}, ": model_type: got .*; allowed: gpt2, llama, mistral, qwen2, qwen3; take another checkpoint")


def test_no_architecture() -> None:
    refused(FULL, "model_type: got None; allowed: ")


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_size_is_named(name: str) -> None:
    refused(
        {"model_type": "llama", **{other: value for other, value in FULL.items() if other != name}},
        f": {name}: got nothing; allowed: a value; the field is required; set it right",
    )


@pytest.mark.parametrize("name", [name for name, value in FULL.items() if isinstance(value, int) and not isinstance(value, bool)])
@pytest.mark.parametrize("value", [0, -1, 2.5, 48.0, "48", True, [48], 2**31, 10**400])
def test_a_size_that_can_not_be(name: str, value: object) -> None:
    refused(
        {"model_type": "llama", **FULL, name: value},
        f": ({name}|head_dim): got .*; allowed: .*; (set it right, or take another checkpoint|give head_dim)",
    )


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, 0.0, -1e-5, float("inf"), float("nan"), "1e-5", True])
def test_a_number_that_can_not_be(name: str, value: object) -> None:
    refused({"model_type": "llama", **FULL, name: value}, f": {name}: got .*; allowed: .*; set it right")


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
@pytest.mark.parametrize("value", [0, 1, "false", "yes", []])
def test_a_flag_that_is_none(name: str, value: object) -> None:
    refused({"model_type": "llama", **FULL, name: value}, f": {name}: got .*; allowed: .*; set it right")


def test_heads_that_do_not_share_keys_evenly() -> None:
    refused({"model_type": "llama", **FULL, "num_key_value_heads": 4}, r"heads is 6, must be a multiple of num_key_value_heads \(4\); set")


def test_an_odd_head_dim() -> None:
    refused({"model_type": "llama", **FULL, "head_dim": 9}, "head_dim: got 9; allowed: .*multiple of 2; ")


@pytest.mark.parametrize(("hidden", "heads"), [(50, 6), (48, 0), ("48", 6)])
def test_no_head_dim_and_none_to_be_found(hidden: object, heads: object) -> None:
    fields = {**SIZES, "hidden_size": hidden, "num_attention_heads": heads, "model_type": "llama"}
    refused(fields, "head_dim: got nothing, and hidden_size .* is no multiple of num_attention_heads .*; give head_dim")


def test_a_layout_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read(FULL).head_dim = 12  # type: ignore[misc]
