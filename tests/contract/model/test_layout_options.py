"""What a layout says beyond its fields: options, windows of layers, GPT-2's names of its sizes and of its activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from contract.errors import ContractError, ContractErrors
from contract.model import layout
from contract.model.layouts import gpt2
from tests.contract.model.tiny_witness import IDS, fields_of, logits, model_of, plain, same_function


def read(model_type: str, config: Mapping[str, Any]) -> layout.Layout:
    return layout.read({"model_type": model_type, **config})


# Sizes of GPT-2 under either name


def test_gpt2s_sizes_under_either_name() -> None:
    names = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    config = {names.get(name, name): value for name, value in fields_of("gpt2").items()}
    assert read("gpt2", config) == read("gpt2", fields_of("gpt2"))
    assert same_function(plain("gpt2"), model_of("gpt2", config))
    assert read("gpt2", {**config, **fields_of("gpt2", n_ctx=40)}) == read("gpt2", config)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hidden_size": 48}, "hidden_size: got 48; allowed: 24, as n_embd"),
        ({"n_ctx": 41}, "n_ctx: got 41; allowed: 40, as n_positions"),
        ({"n_head": 5}, "n_head: got 5; allowed: a divisor of n_embd, 24"),
        ({"n_layer": 0}, "n_layer: got 0; allowed: a whole number from 1"),
        ({"n_embd": "24"}, "n_embd: got '24'"),
        ({"n_inner": 2.0}, "n_inner: got 2.0"),
        ({"n_positions": True}, "n_positions: got True"),
        ({"n_head": None}, "n_head: got nothing; allowed: a value"),
        ({"vocab_size": None}, "vocab_size: got nothing"),
        ({"resid_pdrop": 1.0}, "resid_pdrop: got 1.0"),
        ({"scale_attn_weights": 1}, "scale_attn_weights: got 1"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon: got 0.0"),
    ],
)
def test_gpt2s_fields_that_can_not_be(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        read("gpt2", fields_of("gpt2", **more))


# What the layout then says


@pytest.mark.parametrize(
    ("model_type", "more", "options"),
    [
        ("llama", {}, ()),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, ()),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("rope_scaling.linear",)),
        ("mistral", {}, ("sliding_window",)),
        ("mistral", {"sliding_window": None}, ()),
        ("mistral", {"sliding_window": 40}, ()),
        ("mistral", {"sliding_window": 39}, ("sliding_window",)),
        ("qwen2", {"use_sliding_window": False}, ()),
        ("qwen2", {"max_window_layers": 3}, ()),
        ("qwen2", {"sliding_window": 40}, ()),
        ("qwen3", {"sliding_window": 39}, ("sliding_window",)),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, ()),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, ("rope_scaling.linear", "sliding_window")),
        ("gpt2", {}, ()),
        ("gpt2", {"activation_function": "gelu"}, ("activation_function.gelu",)),
        ("gpt2", {"scale_attn_weights": False}, ("scale_attn_weights.false",)),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
    ],
)  # fmt: skip
def test_options_beyond_the_plain_graph(model_type: str, more: dict[str, Any], options: tuple[str, ...]) -> None:
    assert read(model_type, fields_of(model_type, **more)).options == options


def test_a_window_that_no_sequence_reaches_changes_nothing() -> None:
    """Sixteen ids: a window of 16 is none, one of 15 is one."""
    windows = (None, IDS.shape[1] - 1, IDS.shape[1])
    whole, reached, out = (model_of("mistral", fields_of("mistral", sliding_window=window)) for window in windows)
    assert torch.equal(logits(whole), logits(out))
    assert not torch.equal(logits(whole), logits(reached))


def test_the_windows_of_the_layers() -> None:
    found = {
        "llama": read("llama", fields_of("llama")),
        "mistral": read("mistral", fields_of("mistral")),
        "from the second on": read("qwen2", fields_of("qwen2", max_window_layers=1)),
        "by their types": read("qwen3", fields_of("qwen3", layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    }
    assert {name: [one.window(layer) for layer in range(3)] for name, one in found.items()} == {
        "llama": [None, None, None], "mistral": [7, 7, 7], "from the second on": [None, 7, 7], "by their types": [7, None, 7],
    }  # fmt: skip


@pytest.mark.parametrize(("first", "types"), [(0, 3 * ["sliding_attention"]), (2, [*2 * ["full_attention"], "sliding_attention"])])
def test_both_spellings_of_a_window_are_one_function(first: int, types: list[str]) -> None:
    one, other = fields_of("qwen2", max_window_layers=first), fields_of("qwen2", layer_types=types)
    assert same_function(model_of("qwen2", one), model_of("qwen2", other))
    assert [read("qwen2", one).window(layer) for layer in range(3)] == [read("qwen2", other).window(layer) for layer in range(3)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"layer_types": ["full_attention"] * 2}, "layer_types has 2 entries; give one for each of 3 layers"),
        (
            {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False},
            "use_sliding_window true and a sliding_window go with it",
        ),
        ({"layer_types": ["linear_attention"] * 3}, "'full_attention' or 'sliding_attention'"),
        ({"layer_types": "full_attention"}, "layer_types: got 'full_attention'"),
        ({"sliding_window": 0}, "sliding_window: got 0"),
        ({"use_sliding_window": 1}, "use_sliding_window: got 1"),
        ({"max_window_layers": -1}, "max_window_layers: got -1"),
    ],
)
def test_windows_that_can_not_be(more: dict[str, Any], message: str) -> None:
    with pytest.raises((ContractError, ContractErrors), match=message):
        read("qwen2", fields_of("qwen2", **more))


@pytest.mark.parametrize(("name", "function"), sorted(gpt2._GELU.items()))
def test_the_names_of_a_gelu(name: str, function: str) -> None:
    """In float64, where a rounded constant would show; transformers' own two forms of a name differ by their rounding."""
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    erf = 0.5 * x * (1 + torch.special.erf(x / 2**0.5))
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    right, wrong = (erf, tanh) if function == "gelu" else (tanh, erf)
    u = torch.finfo(torch.float64).eps
    assert (ACT2FN[name](x) - right).abs().max() < 16 * u * x.abs().max()
    assert (ACT2FN[name](x) - wrong).abs().max() > 1e6 * u
    assert read("gpt2", fields_of("gpt2", activation_function=name)).model_dump()["activation_function"] == function


@pytest.mark.parametrize("name", ["gelu_fast", "relu", "gelu_10", "quick_gelu", "silu", 3, ["gelu"], "nonsense"])
def test_another_activation(name: object) -> None:
    with pytest.raises(ContractError, match=r"activation_function: got .*, not honoured; allowed: gelu_new, "):
        read("gpt2", fields_of("gpt2", activation_function=name))
