"""Every weight of every layout, against the state dict of transformers' own model: names, shapes, and where a part lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.model import checkpoint, layout, weights
from contract.worker import files, graph
from contract.worker.plan import GraphPlan, Lora
from tests.contract.model.test_keymap import layout as llama_layout
from tests.contract.model.tiny_witness import WITNESSES, fields_of, model_of

CASES: list[tuple[str, dict[str, Any]]] = [
    *((model_type, {}) for model_type in WITNESSES),
    *((model_type, {"tie_word_embeddings": tied}) for model_type in WITNESSES for tied in (False, True)),
    ("llama", {"attention_bias": True}), ("llama", {"mlp_bias": True}), ("qwen3", {"attention_bias": True}),
]  # fmt: skip


def layout_of(model_type: str, fields: dict[str, Any]) -> layout.Layout:
    return layout.read({"model_type": model_type, **fields})


@pytest.mark.parametrize(("model_type", "more"), CASES)
def test_names_and_shapes_are_those_of_transformers(model_type: str, more: dict[str, Any]) -> None:
    fields = fields_of(model_type, **more)
    ours = layout_of(model_type, fields)
    with torch.device("meta"):
        witness = WITNESSES[model_type].model(WITNESSES[model_type].config(**fields))
    state = {key.removeprefix("transformer."): tuple(tensor.shape) for key, tensor in witness.state_dict().items()}
    if ours.tie_word_embeddings:
        del state["lm_head.weight"]
    assert {weight.key: weight.stored for weight in weights.weights(ours)} == state
    for key in state:
        assert {weight.key for weight in weights.at(ours, key)} == {key}
    found = {weight.name: weight for key in state for weight in weights.at(ours, key)}
    assert found == {weight.name: weight for weight in weights.weights(ours)}


@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_llamas_are_those_that_open_takes(attention_bias: bool, tied: bool) -> None:
    ours = llama_layout(attention_bias=attention_bias, mlp_bias=not attention_bias, tied=tied)
    plan = GraphPlan(layout=ours, dtype="float32", lora=Lora(rank=1, alpha=1))
    assert {weight.name: (weight.shape, "float32") for weight in weights.weights(ours)} == graph.weights(plan)


@pytest.mark.parametrize(("model_type", "key"), [("llama", "model.layers.{}.mlp.up_proj.weight"), ("gpt2", "h.{}.attn.c_attn.bias")])
def test_the_layer_after_the_last_has_no_place(model_type: str, key: str) -> None:
    ours = layout_of(model_type, fields_of(model_type))
    assert [len(weights.at(ours, key.format(layer))) for layer in (0, 2, 3)] == ([3, 3, 0] if model_type == "gpt2" else [1, 1, 0])


@given(data=st.data())
def test_a_key_of_another_layer_or_model_has_no_place(data: st.DataObject) -> None:
    model_type = data.draw(st.sampled_from(sorted(WITNESSES)), "model_type")
    ours = layout_of(model_type, fields_of(model_type))
    other = data.draw(st.sampled_from(sorted(WITNESSES)), "other")
    theirs = data.draw(st.sampled_from([weight.key for weight in weights.weights(layout_of(other, fields_of(other)))]), "key")
    known = {weight.key for weight in weights.weights(ours)}
    assert bool(weights.at(ours, theirs)) == (theirs in known)
    layer = data.draw(st.integers(0, 9) | st.integers(10**9, 10**12), "layer")
    moved = theirs.replace(".1.", f".{layer}.")
    assert bool(weights.at(ours, moved)) == (moved in known)


def saved(folder: Path, model_type: str, *, prefix: bool, whole: bool = False) -> torch.nn.Module:
    """A tiny model as save_pretrained writes it, GPT-2's base model alone where there is to be no prefix; of whole numbers or not."""
    model = model_of(model_type, fields_of(model_type))
    if whole:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 10).round())
    (model if prefix else model.base_model).save_pretrained(folder)
    return model


@pytest.mark.parametrize("prefix", [False, True])
def test_the_parts_of_gpt2_compute_what_its_conv1d_does(tmp_path: Path, prefix: bool) -> None:
    """y = x W^T + b with each part that is loaded, against transformers' fused [in, out] linear: in whole numbers, so exactly."""
    model = saved(tmp_path, "gpt2", prefix=prefix, whole=True)
    opened = checkpoint.open_checkpoint(tmp_path)
    x = np.random.default_rng(5).integers(-9, 10, (7, 24)).astype(np.float32)
    attention, mlp = model.transformer.h[1].attn, model.transformer.h[1].mlp
    with torch.no_grad():
        fused = attention.c_attn(torch.from_numpy(x)).numpy()
        up = mlp.c_fc(torch.from_numpy(x)).numpy()
        down = mlp.c_proj(torch.from_numpy(up)).numpy()
        out = attention.c_proj(torch.from_numpy(x)).numpy()

    def linear(name: str, value: np.ndarray) -> np.ndarray:
        weight, bias = checkpoint.load(opened, f"layers.1.{name}"), checkpoint.load(opened, f"layers.1.{name}.bias")
        assert weight.flags.c_contiguous
        np.testing.assert_array_equal(weight, files.load(opened.tensors[f"layers.1.{name}"]))
        return value @ weight.T + bias

    parts = np.concatenate([linear(name, x) for name in ("q_proj", "k_proj", "v_proj")], axis=1)
    for ours, theirs in ((parts, fused), (linear("up_proj", x), up), (linear("down_proj", up), down), (linear("o_proj", x), out)):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(checkpoint.load(opened, "position_embedding"), model.transformer.wpe.weight.detach().numpy())
    np.testing.assert_array_equal(checkpoint.load(opened, "layers.2.mlp_norm.bias"), model.transformer.h[2].ln_2.bias.detach().numpy())


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3", "gpt2"])
def test_what_transformers_saves_opens_whole(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type, prefix=True)
    opened = checkpoint.open_checkpoint(tmp_path)
    state = {key.removeprefix("transformer."): tensor.numpy() for key, tensor in model.state_dict().items()}
    for weight in weights.weights(opened.layout):
        part = state[weight.key][..., weight.start : weight.stop]
        np.testing.assert_array_equal(checkpoint.load(opened, weight.name), part.T if weight.transposed else part)
        assert checkpoint.load(opened, weight.name).shape == weight.shape
