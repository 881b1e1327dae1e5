"""transformers' LlamaForCausalLM and peft on it as witnesses: they share no file with this stack's graph.

In float32 the witness is transformers as it is. Its norm, its rotary tables and its loss compute in float32 whatever the model's
dtype is, so for float64 those three are replaced here.

How far two right answers may lie apart is measured, not typed: the stack's own float32 answer against its float64 answer shows
what this graph makes of roundings of 2^-24, and of 2^-53 it makes 2^-29 of that. An error is taken relative to its tensor's
largest value, and the largest such over all taps (over all gradients) counts for each of them: in one tensor a single value may
outweigh the others, and its one error may be small by chance. Two answers with errors of that size differ by root 2 of it, and
the largest of thousands of random errors, some four times their typical size, does not double by chance: 2 root 2, taken as 3.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from contract.model import checkpoint, keymap, layout
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora
from tests.float64_transformers import clean
from tests.stacks.torch_qlora.tiny_torch_graph import GRAPH, LAYOUT, batch, opened, plan, weights

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MARGIN = 3
UNIT_RATIO = 2.0**-29

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


def witness(wanted: GraphPlan, tensors: dict[str, np.ndarray], dtype: torch.dtype) -> LlamaForCausalLM:
    """transformers' model of a layout, with the weights under the names that checkpoints have."""
    config = LlamaConfig(**wanted.layout.model_dump(exclude={"model_type"}), attn_implementation="sdpa", pad_token_id=None)
    model = LlamaForCausalLM(config).to(dtype)
    state = {keymap.hugging_face_key(name): torch.tensor(tensors[name]).to(dtype) for name in graph.weights(wanted)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if wanted.layout.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What transformers' ForCausalLMLoss computes, without its cast of the logits to float32."""
    counted = labels[:, 1:] != -100
    chosen = torch.log_softmax(logits[:, :-1], dim=-1)[counted]
    return -chosen.gather(1, labels[:, 1:][counted][:, None]).mean()


def answers(model: Any, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Hidden states, logits and loss of a witness by the names of taps. transformers answers its last hidden state after the norm."""
    ids, labels = torch.from_numpy(tensors["ids"]), torch.from_numpy(tensors["labels"])
    out = model(input_ids=ids, labels=labels, output_hidden_states=True, use_cache=False)
    states = dict(zip(hidden_states(len(out.hidden_states) - 1), out.hidden_states, strict=True))
    loss = out.loss if out.logits.dtype == torch.float32 else mean_loss(out.logits, labels)
    return states | {"logits": out.logits, "loss": loss}


def hidden_states(layers: int) -> list[str]:
    return ["embedding", *(f"layers.{layer}.output" for layer in range(layers - 1)), "final_norm"]


def own(wanted: GraphPlan, tensors: dict[str, np.ndarray], tokens: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """This stack's answers."""
    names = [*hidden_states(wanted.layout.num_hidden_layers), "logits", "loss"]
    return opened(wanted.model_copy(update={"dtype": dtype}), tensors).gradients(GRAPH, names, tokens).tensors


def allowed(single: dict[str, np.ndarray], double: dict[str, np.ndarray], dtype: str) -> dict[str, float]:
    """The largest distance of two right answers; see the top of this file."""
    sizes = {name: float(np.abs(value).max()) for name, value in double.items()}
    responses = {name: float(np.abs(single[name] - double[name]).max()) / sizes[name] for name in double}
    unit = UNIT_RATIO if dtype == "float64" else 1.0
    return {
        name: MARGIN * unit * size * max(responses[other] for other in responses if is_gradient(other) == is_gradient(name))
        for name, size in sizes.items()
    }


def is_gradient(name: str) -> bool:
    return name.startswith("grad.")


def distances(
    witnessed: dict[str, torch.Tensor], single: dict[str, np.ndarray], double: dict[str, np.ndarray], dtype: str
) -> dict[str, tuple[float, float]]:
    """Tap or gradient -> its largest distance from the witness, and what is allowed."""
    mine = {"float32": single, "float64": double}[dtype]
    assert mine.keys() == witnessed.keys()
    found, bounds = {}, allowed(single, double, dtype)
    for name, value in witnessed.items():
        assert str(value.dtype) == f"torch.{dtype}", name
        assert mine[name].any(), name
        found[name] = (float(np.abs(mine[name] - value.detach().numpy()).max()), bounds[name])
    return found


def too_far(found: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    return {name: pair for name, pair in found.items() if not pair[0] <= pair[1]}


def adapted(model: Any, wanted: GraphPlan, tensors: dict[str, np.ndarray]) -> Any:
    """peft on transformers' model, as its users put it there, with the plan's adapter."""
    config = LoraConfig(
        r=wanted.lora.rank, lora_alpha=wanted.lora.alpha, use_rslora=wanted.lora.rslora, target_modules=list(wanted.lora.targets)
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


def compare(wanted: GraphPlan, tensors: dict[str, np.ndarray], tokens: dict[str, np.ndarray], dtype: str) -> dict[str, tuple[float, float]]:
    """Taps and adapter gradients against peft on transformers' model."""
    model = adapted(witness(wanted, tensors, getattr(torch, dtype)), wanted, tensors)
    witnessed = answers(model, tokens)
    parameters = adapter_of(model, wanted)
    gradients = torch.autograd.grad(witnessed["loss"], list(parameters.values()))
    witnessed |= {f"grad.{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
    return distances(witnessed, own(wanted, tensors, tokens, "float32"), own(wanted, tensors, tokens, "float64"), dtype)


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_and_peft_agree_in_float32(config: str, lora: str) -> None:
    wanted = plan(layout=CONFIGS[config], lora=LORAS[lora])
    assert too_far(compare(wanted, weights(wanted), batch(), "float32")) == {}


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_and_peft_agree_in_float64(config: str, lora: str) -> None:
    wanted = plan(layout=CONFIGS[config], lora=LORAS[lora])
    with clean():
        found = compare(wanted, weights(wanted), batch(), "float64")
    assert too_far(found) == {}
    assert max(far for far, _ in found.values()) > 0


@pytest.mark.parametrize("left_as_it_is", ["LlamaRMSNorm", "LlamaRotaryEmbedding"])
def test_a_float32_cast_inside_of_a_float64_graph_is_far_outside(left_as_it_is: str) -> None:
    """What this test can see: transformers' own casts, one at a time, miss the logits' bound by thousands."""
    wanted = plan()
    original = getattr(modeling_llama, left_as_it_is).forward
    with clean(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(getattr(modeling_llama, left_as_it_is), "forward", original)
        found = compare(wanted, weights(wanted), batch(), "float64")
    far, bound = found["logits"]
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
    assert too_far(found) == {}
    assert len(found) == 30 + 3 + 2 * 3 * 30


def test_the_configurations_differ_where_a_field_could_be_misread() -> None:
    sizes = [LAYOUT.vocab_size, LAYOUT.hidden_size, LAYOUT.intermediate_size, LAYOUT.num_hidden_layers, LAYOUT.num_attention_heads]
    sizes += [LAYOUT.num_key_value_heads, LAYOUT.head_dim, LAYOUT.max_position_embeddings]
    assert len(set(sizes)) == len(sizes)
    assert LAYOUT.num_attention_heads * LAYOUT.head_dim not in (LAYOUT.hidden_size, LAYOUT.intermediate_size)
    assert set(LORAS["all"].targets) == set(taps.LINEARS)
