"""transformers' LlamaForCausalLM and peft on it as witnesses: they share no file with this stack's graph.

In float32 the witness is transformers as it is. Its norm, its rotary tables and its loss compute in float32 whatever the model's
dtype is, so for float64 those three are replaced here.

How far two right answers may lie apart is measured (transformers_witness.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.llama import modeling_llama

from contract.model import checkpoint, keymap, layout
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora
from tests.float64_transformers import clean
from tests.stacks.torch_qlora.tiny_torch_graph import LAYOUT, batch, plan, weights
from tests.stacks.torch_qlora.transformers_witness import Answers, allowed, answers, own, responses, too_far, witness

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CONFIGS: dict[str, dict[str, Any]] = {
    "own_head_dim_biases_untied": {},
    "tied_no_bias": {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True},
    "one_key_head": {"num_key_value_heads": 1, "mlp_bias": False},
    "no_grouping_wide_heads": {"num_key_value_heads": 6, "head_dim": 34, "attention_bias": False},
    "large_eps_small_theta": {"rms_norm_eps": 3.0, "rope_theta": 11.0},
}
LORAS = {
    "all": Lora(rank=4, alpha=10.0),
    "rslora": Lora(rank=5, alpha=3.0, rslora=True, targets=("q_proj", "v_proj", "o_proj", "down_proj")),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Two answers, and how far they may lie apart."""

    ours: Answers
    theirs: Answers
    bounds: dict[str, float]


def peft_on(model: Any, wanted: GraphPlan, tensors: dict[str, np.ndarray]) -> Any:
    """peft on transformers' model, as its users put it there, with the plan's adapter."""
    config = LoraConfig(
        r=wanted.lora.rank, lora_alpha=wanted.lora.alpha, use_rslora=wanted.lora.rslora, target_modules=sorted(wanted.targets)
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapter_of(model, wanted).items():
            parameter.copy_(torch.from_numpy(tensors[name]))
    return model


def adapter_of(model: Any, wanted: GraphPlan) -> dict[str, torch.nn.Parameter]:
    """peft's parameters by the contract's names."""
    parameters = dict(model.named_parameters())
    found = {}
    for name in graph.adapter(wanted):
        path, _, matrix = name.rpartition(".lora_")
        key = keymap.hugging_face_key(path).removesuffix(".weight")
        found[name] = parameters[f"base_model.model.{key}.lora_{matrix.upper()}.default.weight"]
    return found


def compare(wanted: GraphPlan, tensors: dict[str, np.ndarray], tokens: dict[str, np.ndarray], dtype: str) -> Found:
    """Taps and adapter gradients against peft on transformers' model."""
    model = peft_on(witness(wanted.layout, tensors, getattr(torch, dtype)), wanted, tensors)
    witnessed = answers(model, wanted.layout, tokens)
    parameters = adapter_of(model, wanted)
    gradients = torch.autograd.grad(witnessed["loss"], list(parameters.values()))
    witnessed |= {f"grad.{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
    theirs = {name: value.detach().numpy() for name, value in witnessed.items()}
    ours = {name: own(wanted, tensors, tokens, name) for name in ("float32", "float64")}
    bounds = allowed(ours["float64"], [responses(ours["float32"], ours["float64"])], dtype)
    return Found(ours=ours[dtype], theirs=theirs, bounds=bounds)


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_and_peft_agree_in_float32(config: str, lora: str) -> None:
    wanted = plan(layout=CONFIGS[config], lora=LORAS[lora])
    found = compare(wanted, weights(wanted), batch(), "float32")
    assert too_far(found.ours, found.theirs, found.bounds) == {}


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_and_peft_agree_in_float64(config: str, lora: str) -> None:
    wanted = plan(layout=CONFIGS[config], lora=LORAS[lora])
    with clean():
        found = compare(wanted, weights(wanted), batch(), "float64")
    assert too_far(found.ours, found.theirs, found.bounds) == {}
    assert any((found.ours[name] != found.theirs[name]).any() for name in found.ours)


@pytest.mark.parametrize("left_as_it_is", ["LlamaRMSNorm", "LlamaRotaryEmbedding"])
def test_a_float32_cast_inside_of_a_float64_graph_is_far_outside(left_as_it_is: str) -> None:
    """What this test can see: transformers' own casts, one at a time, miss the logits' bound by thousands."""
    wanted = plan()
    original = getattr(modeling_llama, left_as_it_is).forward
    with clean(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(getattr(modeling_llama, left_as_it_is), "forward", original)
        found = compare(wanted, weights(wanted), batch(), "float64")
    far, bound = too_far(found.ours, found.theirs, found.bounds)["logits"]
    assert far > 1000 * bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_smollm2_as_transformers_computes_it(dtype: str) -> None:
    """The real checkpoint, every layer's state, logits, loss, and the gradients of an adapter on it."""
    source = checkpoint.locate("smollm2-135m")
    model_layout = layout.read(json.loads((source.path / "config.json").read_text()))
    wanted = GraphPlan(layout=model_layout, dtype="float32", lora=Lora(rank=3, alpha=7.0, targets=("q_proj", "v_proj", "down_proj")))
    generator = np.random.default_rng(9)
    tensors = {name: checkpoint.load(source, name) for name in graph.weights(wanted)}
    for name, (shape, _) in graph.adapter(wanted).items():
        tensors[name] = (generator.standard_normal(shape) * 0.02).astype(np.float32)
    tokens = {"ids": generator.integers(0, model_layout.vocab_size, (1, 8))}
    tokens["labels"] = tokens["ids"].copy()
    if dtype == "float32":
        found = compare(wanted, tensors, tokens, dtype)
    else:
        with clean():
            found = compare(wanted, tensors, tokens, dtype)
    assert too_far(found.ours, found.theirs, found.bounds) == {}
    assert len(found.ours) == 30 + 3 + 2 * 3 * 30


def test_the_configurations_differ_where_a_field_could_be_misread() -> None:
    sizes = [LAYOUT.vocab_size, LAYOUT.hidden_size, LAYOUT.intermediate_size, LAYOUT.num_hidden_layers, LAYOUT.num_attention_heads]
    sizes += [LAYOUT.num_key_value_heads, LAYOUT.head_dim, LAYOUT.max_position_embeddings]
    assert len(set(sizes)) == len(sizes)
    assert LAYOUT.num_attention_heads * LAYOUT.head_dim not in (LAYOUT.hidden_size, LAYOUT.intermediate_size)
    assert plan(lora=LORAS["all"]).targets == set(taps.LINEARS)
