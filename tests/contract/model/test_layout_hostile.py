"""config.json as anybody may have written it: a layout, or a ContractError with the place; never another exception, never a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import reading
from contract.errors import ContractError, ContractErrors
from contract.model import layout
from tests.contract.model.tiny_witness import WITNESSES, fields_of

ROPE = ["rope_type", "type", "factor", "rope_theta", "low_freq_factor"]
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 40) | st.integers() | st.sampled_from([2**31, 2**63, 10**400, -(10**400)])
    | st.floats() | st.text(max_size=8) | st.sampled_from(["linear", "llama3", "yarn", "silu", "gelu", "sliding_attention", "\0", "\ud800"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(ROPE) | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
NAMES = sorted(
    {name for model_type in WITNESSES for name in fields_of(model_type)}
    | {"rope_scaling", "rope_parameters", "layer_types", "hidden_act", "activation_function", "tie_word_embeddings", "n_ctx", "model_type"}
    | {"use_sliding_window", "attention_dropout", "resid_pdrop", "quantization_config", "attention_bias", "scale_attn_weights"}
)


def read(config: dict[str, Any]) -> None:
    """A layout that is one, or a refusal that says where."""
    try:
        found = layout.read(config, where="x/config.json")
    except (ContractError, ContractErrors) as error:
        faults = error.faults if isinstance(error, ContractErrors) else (error,)
        assert all(fault.place.startswith("x/config.json") for fault in faults)
        assert all("\n" not in str(fault) for fault in faults)
    else:
        assert found.num_attention_heads % found.num_key_value_heads == 0
        assert found.window(0) is None or found.options


@given(model_type=st.sampled_from(sorted(WITNESSES)), changes=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_nearly_sound(model_type: str, changes: dict[str, Any]) -> None:
    read({"model_type": model_type, **fields_of(model_type), **changes})


@given(model_type=st.sampled_from(sorted(WITNESSES)), dropped=st.sets(st.sampled_from(NAMES), max_size=3))
def test_fields_left_out(model_type: str, dropped: set[str]) -> None:
    config = {"model_type": model_type, **fields_of(model_type)}
    read({name: value for name, value in config.items() if name not in dropped})


@given(config=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), VALUES, max_size=8))
def test_anything(config: dict[str, Any]) -> None:
    read(config)


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        value = reading.json_of(data, "x/config.json")
    except ContractError:
        return
    if isinstance(value, dict):
        read(value)


@given(data=st.data())
def test_a_file_with_some_bytes_changed(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from(sorted(WITNESSES)), "model_type")
    content = bytearray(json.dumps({"model_type": model_type, **fields_of(model_type)}).encode())
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        content[data.draw(st.integers(0, len(content) - 1), "at")] = data.draw(st.integers(0, 255), "to")
    try:
        value = reading.json_of(bytes(content), "x/config.json")
    except ContractError:
        return
    if isinstance(value, dict):
        read(value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("model_type", sorted(WITNESSES))
def test_billions_of_layers_cost_nothing(model_type: str) -> None:
    layers = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    found = layout.read({"model_type": model_type, **fields_of(model_type, **{layers: 2**31 - 1})})
    assert found.num_hidden_layers == 2**31 - 1
    assert found.options == layout.read({"model_type": model_type, **fields_of(model_type)}).options
