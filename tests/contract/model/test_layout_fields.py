"""Each field of transformers' configuration classes, enumerated from them: honoured, refused, or shown to change nothing.

A field that a later version of transformers brings fails the first test until somebody has decided what it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from contract.errors import ContractError
from contract.model import layout
from contract.model.layouts import fields, gpt2, llama, mistral, qwen2, qwen3
from contract.model.layouts.fields import Known
from tests.contract.model.tiny_witness import WITNESSES, fields_of, logits, model_of, plain, same_function

KNOWN: Mapping[str, Known] = {
    known.model_type: known for known in (gpt2.KNOWN, llama.KNOWN, mistral.KNOWN, qwen2.KNOWN, qwen3.KNOWN)
}  # fmt: skip


def of_class(model_type: str) -> list[str]:
    """The fields that transformers' class has."""
    return [field.name for field in dataclasses.fields(WITNESSES[model_type].config)]


CLASS_FIELDS = [(model_type, name) for model_type in WITNESSES for name in of_class(model_type)]

CHANGED: Mapping[str, Any] = {
    # honoured
    "vocab_size": 31, "hidden_size": 48, "n_embd": 48, "intermediate_size": 36, "n_inner": 36, "num_hidden_layers": 4, "n_layer": 4,
    "num_attention_heads": 4, "n_head": 8, "num_key_value_heads": 3, "head_dim": 12, "max_position_embeddings": 44, "n_positions": 44,
    "rms_norm_eps": 0.2, "layer_norm_epsilon": 0.2, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": None,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0}, "sliding_window": 5, "use_sliding_window": False,
    "max_window_layers": 0, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "activation_function": "gelu", "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
    "attn_pdrop": 0.4, "embd_pdrop": 0.4, "resid_pdrop": 0.4,
    # refused
    "hidden_act": "gelu", "attention_dropout": 0.4, "pretraining_tp": 2, "add_cross_attention": True, "reorder_and_upcast_attn": True,
    "is_encoder_decoder": True,
    # without effect
    "architectures": ["Other"], "bos_token_id": 5, "eos_token_id": [6, 7], "pad_token_id": 3, "dtype": "bfloat16",
    "initializer_range": 0.5, "use_cache": False, "output_hidden_states": True, "return_dict": False, "chunk_size_feed_forward": 2,
    "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0}, "problem_type": "regression", "transformers_version": "4.0.0",
    "summary_type": "mean", "summary_use_proj": False, "summary_activation": "tanh", "summary_proj_to_labels": False,
    "summary_first_dropout": 0.3,
}  # fmt: skip
"""Another value of each field than the tiny models have."""

SEEN_ELSEWHERE: Mapping[str, str] = {
    "max_position_embeddings": "a limit of the length, where positions have no weights",
    "attn_pdrop": "a dropout: in training alone",
    "embd_pdrop": "a dropout: in training alone",
    "resid_pdrop": "a dropout: in training alone",
}
"""Honoured fields that change no logit in evaluation, and why."""


def changed(model_type: str, name: str) -> dict[str, Any]:
    value = CHANGED[name]
    if name == "tie_word_embeddings":
        value = not WITNESSES[model_type].config().tie_word_embeddings
    found = fields_of(model_type, **{name: value})
    if name == "rope_parameters":
        del found["rope_theta"]
    return found


def read(model_type: str, config: Mapping[str, Any]) -> layout.Layout:
    return layout.read({"model_type": model_type, **config})


@pytest.mark.parametrize("model_type", WITNESSES)
def test_every_field_of_the_class_is_known_once(model_type: str) -> None:
    known = KNOWN[model_type]
    kinds = (known.honoured, known.all_only.keys(), known.no_effect | fields.NO_EFFECT)
    assert {name for name in of_class(model_type) if sum(name in kind for kind in kinds) != 1} == set()


@pytest.mark.parametrize(("model_type", "name"), CLASS_FIELDS)
def test_a_field_is_honoured_or_refused_or_changes_nothing(model_type: str, name: str) -> None:
    known, config = KNOWN[model_type], changed(model_type, name)
    assert config.get(name) != WITNESSES[model_type].fields.get(name)
    if name in known.all_only:
        with pytest.raises(ContractError) as caught:
            read(model_type, config)
        assert caught.value.place == f"config.json: {name}"
        return
    same = same_function(plain(model_type), model_of(model_type, config))
    if name in known.honoured:
        assert read(model_type, config) != read(model_type, fields_of(model_type))
        assert same == (name in SEEN_ELSEWHERE)
    else:
        assert read(model_type, config) == read(model_type, fields_of(model_type))
        assert same


LEGACY: Mapping[str, Any] = {
    **dict.fromkeys(fields.GENERATION, None), "_attn_implementation_autoset": True, "_commit_hash": "0" * 40, "_name_or_path": "x",
    "_num_labels": 3, "gradient_checkpointing": True, "name_or_path": "x", "num_labels": 3, "output_attentions": True,
    "task_specific_params": {"text-generation": {"do_sample": True}}, "torch_dtype": "float16", "transformers.js_config": {"dtype": "q4"},
    "is_llama_config": True, "output_past": True,
}  # fmt: skip
"""Fields without effect that no class has by name, and values that files have."""


@pytest.mark.parametrize("model_type", WITNESSES)
def test_every_field_without_effect_is_shown_to_have_none(model_type: str) -> None:
    """All at once: the one by one belongs to the class's own fields above."""
    known = KNOWN[model_type].no_effect | fields.NO_EFFECT
    assert known <= {*of_class(model_type), *LEGACY}
    config = fields_of(model_type, **{name: LEGACY[name] for name in known - set(of_class(model_type))})
    assert same_function(plain(model_type), model_of(model_type, config))
    assert read(model_type, config) == read(model_type, fields_of(model_type))


def test_generation_is_what_transformers_takes_out_of_a_config() -> None:
    assert GenerationConfig._get_default_generation_params().keys() == fields.GENERATION


@pytest.mark.parametrize("model_type", WITNESSES)
def test_refused_fields_with_their_allowed_values_change_nothing(model_type: str) -> None:
    allowed = {name: [value for value in only.values if value is not None] for name, only in KNOWN[model_type].all_only.items()}
    for choice in (0, -1):
        config = fields_of(model_type, **{name: values[choice] for name, values in allowed.items() if values})
        assert read(model_type, config) == read(model_type, fields_of(model_type))
        assert same_function(plain(model_type), model_of(model_type, config))
    nothing = fields_of(model_type, **{name: None for name, only in KNOWN[model_type].all_only.items() if None in only.values})
    assert read(model_type, nothing) == read(model_type, fields_of(model_type))
    assert same_function(plain(model_type), model_of(model_type, nothing))


@pytest.mark.parametrize(
    ("model_type", "name"), [("llama", "hidden_act"), ("mistral", "hidden_act"), ("qwen3", "hidden_act"), ("gpt2", "add_cross_attention")]
)
def test_what_is_refused_would_change_the_function(model_type: str, name: str) -> None:
    assert not same_function(plain(model_type), model_of(model_type, changed(model_type, name)))


def test_a_mask_that_is_not_causal_would_change_the_function() -> None:
    for value in (False, None):
        assert not same_function(plain("llama"), model_of("llama", fields_of("llama", is_causal=value)))
        with pytest.raises(ContractError, match="is_causal: got "):
            read("llama", fields_of("llama", is_causal=value))


@pytest.mark.parametrize("name", gpt2._DROPOUTS)
def test_dropouts_of_the_base_act_in_training_alone(name: str) -> None:
    """What GPT2Layout says of them: they are read, a report says that they are not applied, and no logit shows them."""
    none = dict.fromkeys(gpt2._DROPOUTS, 0.0)
    model, without = model_of("gpt2", fields_of("gpt2", **none | {name: 0.4})), model_of("gpt2", fields_of("gpt2", **none))
    assert torch.equal(logits(model), logits(without))
    torch.manual_seed(1)
    assert torch.equal(logits(without.train()), logits(without.eval()))
    assert not torch.equal(logits(model.train()), logits(model.eval()))
    assert read("gpt2", fields_of("gpt2", **none)).notes == ()
    assert read("gpt2", fields_of("gpt2", **none | {name: 0.4})).notes[0].endswith(f": {name} 0.4")


# Silence, and what transformers itself writes


@pytest.mark.parametrize("model_type", WITNESSES)
def test_silence_means_what_it_means_to_transformers(model_type: str) -> None:
    """Field by field against the class's attributes; and a config.json that says what it means is the same layout."""
    few = {"vocab_size": 29, "hidden_size": 64, "intermediate_size": 34, "num_hidden_layers": 40, "num_attention_heads": 32}
    if model_type == "gpt2":
        few = {"vocab_size": 29, "n_embd": 64, "n_layer": 3, "n_head": 8}
    config = WITNESSES[model_type].config(**few)
    spoken = {name: getattr(config, name) for name in KNOWN[model_type].honoured & set(of_class(model_type))}
    silent = read(model_type, few)
    assert silent == read(model_type, {name: value for name, value in spoken.items() if value is not None})
    ours, none = silent.model_dump(), object()
    theirs = {name: getattr(config, name, none) for name in ours if name not in ("sliding_window", "max_window_layers", "layer_types")}
    differ = {name: ours[name] for name, value in theirs.items() if value is not none and value != ours[name]}
    assert differ == ({} if model_type == "gpt2" else {"rope_scaling": None})
    if model_type != "gpt2":
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": ours["rope_theta"]}


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_what_a_window_is_where_it_is_only_switched_on(model_type: str) -> None:
    fields = fields_of(model_type, num_hidden_layers=40, max_position_embeddings=10**5, use_sliding_window=True)
    fields = {name: value for name, value in fields.items() if name not in ("sliding_window", "max_window_layers")}
    config, found = WITNESSES[model_type].config(**fields), read(model_type, fields)
    theirs = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    assert [found.window(layer) for layer in range(40)] == theirs
    assert len(set(theirs)) == 2


@pytest.mark.parametrize("model_type", WITNESSES)
@pytest.mark.parametrize("whole", [False, True])
def test_what_transformers_saves_is_read_back(model_type: str, whole: bool) -> None:
    config = WITNESSES[model_type].config(**fields_of(model_type))
    saved = json.loads(config.to_json_string(use_diff=not whole))
    assert read(model_type, saved) == read(model_type, fields_of(model_type))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_null_key_heads_are_as_many_as_heads(model_type: str) -> None:
    """Whatever silence means. transformers 5.23 says so in MistralConfig, and refuses null before it gets there."""
    fields = fields_of(model_type, num_key_value_heads=None)
    assert read(model_type, fields).num_key_value_heads == 6
    if model_type != "mistral":
        assert WITNESSES[model_type].config(**fields).num_key_value_heads == 6


def test_qwen3s_head_dim_is_its_own_and_never_null() -> None:
    fields = {name: value for name, value in fields_of("qwen3").items() if name != "head_dim"}
    assert read("qwen3", fields).head_dim == WITNESSES["qwen3"].config(**fields).head_dim == 128
    with pytest.raises(ContractError, match="head_dim: got None"):
        read("qwen3", {**fields, "head_dim": None})
