"""Rotary embedding in config.json: both spellings, scalings as data, and every other one refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from contract.errors import ContractError, ContractErrors
from contract.model import layout
from contract.model.layout import LlamaLayout, MistralLayout, Qwen2Layout, Qwen3Layout, RopeScaling
from contract.worker.plan import GraphPlan
from tests.contract.model.tiny_witness import fields_of, logits, model_of

ROPE_TYPES = ["llama", "mistral", "qwen2", "qwen3"]
LINEAR: Mapping[str, Any] = {"rope_type": "linear", "factor": 3.0}
LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0, "original_max_position_embeddings": 12,
}  # fmt: skip


def read(model_type: str = "llama", **more: Any) -> LlamaLayout | MistralLayout | Qwen2Layout | Qwen3Layout:
    fields = {name: value for name, value in fields_of(model_type).items() if name != "rope_theta"}
    found = layout.read({"model_type": model_type, **fields, **more})
    assert not isinstance(found, layout.GPT2Layout)
    return found


def refused(message: str, **more: Any) -> None:
    with pytest.raises((ContractError, ContractErrors), match=message):
        read(**more)


@pytest.mark.parametrize("model_type", ROPE_TYPES)
@pytest.mark.parametrize("scaling", [LINEAR, LLAMA3])
def test_each_spelling_says_the_same(model_type: str, scaling: Mapping[str, Any]) -> None:
    old = {("type" if name == "rope_type" else name): value for name, value in scaling.items()}
    found = [
        read(model_type, rope_theta=77.0, rope_scaling=dict(scaling)),
        read(model_type, rope_theta=77.0, rope_scaling=old),
        read(model_type, rope_theta=77.0, rope_scaling=old | {"rope_type": scaling["rope_type"]}),
        read(model_type, rope_parameters={**scaling, "rope_theta": 77.0}),
        read(model_type, rope_theta=77.0, rope_parameters=dict(scaling), rope_scaling=old),
        read(model_type, rope_scaling={**old, "rope_theta": 77}, rope_parameters={**scaling, "rope_theta": 77.0}),
    ]
    assert {one.rope_theta for one in found} == {77.0}
    assert {one.rope_scaling for one in found} == {RopeScaling(**scaling)}
    assert {one.options[0] for one in found} == {f"rope_scaling.{scaling['rope_type']}"}


@pytest.mark.parametrize("scaling", [LINEAR, LLAMA3])
def test_what_transformers_makes_of_either_spelling_is_the_same_function(scaling: Mapping[str, Any]) -> None:
    new = {name: value for name, value in fields_of("llama").items() if name != "rope_theta"}
    new |= {"rope_parameters": {**scaling, "rope_theta": 50.0}}
    old = fields_of("llama", rope_scaling=dict(scaling))
    assert torch.equal(logits(model_of("llama", new)), logits(model_of("llama", old)))
    assert layout.read({"model_type": "llama", **new}) == layout.read({"model_type": "llama", **old})
    saved = json.loads(LlamaConfig(**old).to_json_string())
    assert layout.read(saved) == layout.read({"model_type": "llama", **old})


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [(LINEAR, "factor", 4.0), (LLAMA3, "factor", 4.0), (LLAMA3, "low_freq_factor", 2.0), (LLAMA3, "high_freq_factor", 9.0),
     (LLAMA3, "original_max_position_embeddings", 30), (LINEAR, "rope_theta", 99.0), (LLAMA3, "rope_theta", 99.0)],
)  # fmt: skip
def test_each_parameter_changes_the_function_and_the_layout(base: Mapping[str, Any], name: str, value: float) -> None:
    one, other = ({**base, "rope_theta": 50.0} | change for change in ({}, {name: value}))
    fields = {name: value for name, value in fields_of("llama").items() if name != "rope_theta"}
    functions = [logits(model_of("llama", {**fields, "rope_parameters": dict(parameters)})) for parameters in (one, other)]
    assert not torch.equal(*functions)
    assert read(rope_parameters=one) != read(rope_parameters=other)


@given(
    factor=st.floats(1, 1e6) | st.integers(1, 10**6),
    low=st.floats(0, 100, exclude_min=True),
    more=st.floats(1e-3, 100),
    original=st.integers(1, 2**31 - 1),
    theta=st.floats(0, 1e12, exclude_min=True),
)
def test_any_llama3_is_read_as_it_stands(factor: float, low: float, more: float, original: int, theta: float) -> None:
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": low + more,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    found = read(**json.loads(json.dumps({"rope_theta": theta, "rope_scaling": scaling})))
    assert found.rope_scaling is not None
    assert (found.rope_theta, found.rope_scaling.model_dump()) == (theta, scaling)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "kind", ["dynamic", "yarn", "longrope", "su", "mrope", "proportional", "axial", "nonsense", "", None, 1, ["linear"]]
)
def test_another_scaling_is_refused_by_name(spelling: str, kind: object) -> None:
    refused(rf"config.json: {spelling}.rope_type: got .*, not honoured; allowed: default, linear, llama3; take another", **{
        spelling: {"rope_type": kind, "factor": 2.0}
    })  # fmt: skip


@pytest.mark.parametrize("value", ["linear", 3, 2.0, True, ["linear"], [LINEAR]])
def test_a_scaling_that_is_no_object(value: object) -> None:
    refused(r"rope_scaling: got .*, not honoured; allowed: an object", rope_scaling=value)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear"}, r"rope_scaling: factor: got nothing"),
        ({**LINEAR, "factor": 0.5}, r"factor: got 0.5; allowed: .*greater than or equal to 1"),
        ({**LINEAR, "factor": float("nan")}, r"factor: got nan"),
        ({**LINEAR, "factor": float("inf")}, r"factor: got inf"),
        ({**LINEAR, "factor": "2"}, r"factor: got '2'"),
        ({**LINEAR, "factor": True}, r"factor: got True"),
        ({**LINEAR, "factor": None}, r"factor: got None"),
        ({**LINEAR, "low_freq_factor": 1.0}, r"linear with low_freq_factor"),
        ({**LINEAR, "partial_rotary_factor": 0.5}, r"partial_rotary_factor: got an unknown field"),
        ({**LINEAR, "type": "llama3"}, r"rope_scaling.type: got 'llama3', and rope_type 'linear'; allowed: one; "),
        ({"rope_type": "default", "factor": 2.0}, r"'factor': got 2.0, not honoured; allowed: rope_type, rope_theta"),
        ({"full_attention": {"rope_type": "default"}}, r"'full_attention': got .*, not honoured"),
        ({**LLAMA3, "low_freq_factor": 5.0}, r"low_freq_factor < high_freq_factor"),
        ({**LLAMA3, "low_freq_factor": 0}, r"low_freq_factor: got 0"),
        ({**LLAMA3, "high_freq_factor": -1.0}, r"high_freq_factor: got -1.0"),
        ({**LLAMA3, "original_max_position_embeddings": 12.0}, r"original_max_position_embeddings: got 12.0"),
        ({**LLAMA3, "original_max_position_embeddings": 0}, r"original_max_position_embeddings: got 0"),
        ({**LLAMA3, "beta_fast": 32}, r"beta_fast: got an unknown field"),
    ],
)
def test_parameters_that_can_not_be(scaling: dict[str, Any], message: str) -> None:
    refused(message, rope_scaling=scaling)


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_llama3_needs_each_of_its_parameters(name: str) -> None:
    refused("factor: got nothing|all of them given", rope_scaling={key: value for key, value in LLAMA3.items() if key != name})


@pytest.mark.parametrize("scaling", [LINEAR, LLAMA3])
def test_a_plan_carries_the_scaling(scaling: Mapping[str, Any]) -> None:
    scaled = read(rope_theta=77.0, rope_scaling=dict(scaling))
    plan = GraphPlan.model_validate({"layout": scaled.model_dump(mode="json"), "dtype": "float32", "lora": {"rank": 1, "alpha": 1.0}})
    assert plan.layout == scaled


def test_two_scalings_are_refused() -> None:
    refused("rope_scaling: got another scaling than rope_parameters", rope_scaling=dict(LINEAR), rope_parameters=dict(LLAMA3))
    refused("rope_scaling: got another scaling", rope_scaling=dict(LINEAR), rope_parameters={"rope_type": "default"})


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_two_values_of_theta_are_refused(spelling: str) -> None:
    message = rf"{spelling}.rope_theta: got 10.0, elsewhere 20.0; allowed: one value; leave the right one alone"
    refused(message, rope_theta=20.0, **{spelling: {"rope_type": "default", "rope_theta": 10.0}})
    refused(
        r"rope_parameters.rope_theta: got 20.0, elsewhere 10.0", rope_scaling={"rope_theta": 10.0}, rope_parameters={"rope_theta": 20.0}
    )


@pytest.mark.parametrize("parameters", [{"rope_theta": "10"}, {"rope_theta": [1]}, {"rope_theta": -1.0}, {"rope_theta": 0}])
def test_a_theta_that_can_not_be(parameters: dict[str, Any]) -> None:
    refused("rope_theta: got ", rope_parameters=parameters)
