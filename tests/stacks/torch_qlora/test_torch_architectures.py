"""Every architecture and every option against transformers: hidden states, logits, loss and adapter gradients, in float32 and float64.

transformers shares no file with this stack's graphs; LoRA is W + s B A there (transformers_witness.py says how far two right answers
may lie apart).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from contract.worker import taps
from tests.float64_transformers import clean
from tests.stacks.torch_qlora.tiny_architectures import LAYOUTS, LINEAR, ONE_EACH, batch, plan
from tests.stacks.torch_qlora.tiny_torch_graph import weights
from tests.stacks.torch_qlora.transformers_witness import adapted, allowed, own, responses, too_far

Both = dict[str, dict[str, np.ndarray]]


@cache
def ours(name: str) -> Both:
    """This stack's answers by dtype."""
    return {dtype: own(plan(name), weights(plan(name)), batch(), dtype) for dtype in ("float32", "float64")}


@cache
def theirs(name: str) -> Both:
    """transformers' answers by dtype, without its float32 casts."""
    with clean():
        return {dtype: adapted(plan(name), weights(plan(name)), batch(), dtype) for dtype in ("float32", "float64")}


def bounds(name: str, dtype: str) -> dict[str, float]:
    found = [responses(both["float32"], both["float64"]) for both in (ours(name), theirs(name))]
    return allowed(ours(name)["float64"], found, dtype)


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_agrees_in_float32(name: str) -> None:
    assert too_far(ours(name)["float32"], theirs(name)["float32"], bounds(name, "float32")) == {}


@pytest.mark.parametrize("name", ONE_EACH)
def test_transformers_as_it_is_agrees_in_float32(name: str) -> None:
    """With its own norms and rotary tables."""
    witnessed = adapted(plan(name), weights(plan(name)), batch(), "float32")
    assert too_far(ours(name)["float32"], witnessed, bounds(name, "float32")) == {}


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_agrees_in_float64(name: str) -> None:
    mine, witnessed = ours(name)["float64"], theirs(name)["float64"]
    assert too_far(mine, witnessed, bounds(name, "float64")) == {}
    assert any((mine[tap] != witnessed[tap]).any() for tap in mine)
    assert len(mine) == LAYOUTS[name].num_hidden_layers * (1 + 2 * len(taps.linears(LAYOUTS[name]))) + 3


MISREAD: dict[str, dict[str, Any]] = {
    "llama_linear": {"rope_scaling": None}, "llama_llama3": {"rope_scaling": LINEAR}, "mistral": {"sliding_window": 10},
    "mistral_window": {"sliding_window": 5}, "qwen2_window_from": {"max_window_layers": 0},
    "qwen2_window_types": {"layer_types": ("full_attention", "sliding_attention")}, "qwen3_bias_window": {"sliding_window": 3},
    "gpt2": {"activation_function": "gelu"}, "gpt2_erf_untied": {"activation_function": "gelu_new"},
    "gpt2_unscaled": {"scale_attn_weights": True}, "gpt2_inverse": {"scale_attn_by_inverse_layer_idx": False},
    "gpt2_unscaled_inverse": {"scale_attn_by_inverse_layer_idx": False},
}  # fmt: skip
"""A layout -> one of its fields misread: a window by one, a window in the wrong layer, another scaling."""


@pytest.mark.parametrize("name", MISREAD)
def test_a_field_that_is_misread_is_seen_in_float32(name: str) -> None:
    wrong = plan(name, "float32", layout=LAYOUTS[name].model_copy(update=MISREAD[name]))
    answers = own(wrong, weights(plan(name)), batch(), "float32")
    assert "logits" in too_far(answers, theirs(name)["float32"], bounds(name, "float32"))


def test_every_option_is_met() -> None:
    assert {option for layout in LAYOUTS.values() for option in layout.options} == {
        "rope_scaling.linear", "rope_scaling.llama3", "sliding_window", "activation_function.gelu", "scale_attn_weights.false",
        "scale_attn_by_inverse_layer_idx",
    }  # fmt: skip
