"""transformers' models of a layout as witnesses of this stack's graphs, and how far two right answers may lie apart.

That distance is measured, not typed: each one's own float32 answer against its own float64 answer shows what it makes of roundings
of 2^-24, and of 2^-53 it makes 2^-29 of that. An error is taken relative to its tensor's largest value, and the largest
such over all taps (over all gradients) counts for each of them: in one tensor a single value may outweigh the others, and its one
error may be small by chance. Two answers with errors of that size differ by root 2 of it, and the largest of thousands of random
errors, some four times their typical size, does not double by chance: 2 root 2, taken as 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from contract.model import keymap, weights
from contract.model.layout import GPT2Layout, Layout, RopeLayout
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan
from tests.stacks.torch_qlora.tiny_torch_graph import GRAPH, opened

Answers = dict[str, np.ndarray]

MARGIN = 3
UNIT_RATIO = 2.0**-29

MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel), "llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}  # fmt: skip


# The witness


def config_of(layout: Layout) -> dict[str, Any]:
    """config.json's fields of a layout, as transformers 5 has them."""
    fields = layout.model_dump(exclude={"model_type", "rope_theta", "rope_scaling", "sliding_window", "max_window_layers", "layer_types"})
    if isinstance(layout, GPT2Layout):
        theirs = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        theirs |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
        return {theirs.get(name, name): value for name, value in fields.items() if name not in ("num_key_value_heads", "head_dim")}
    assert isinstance(layout, RopeLayout)
    scaling = {"rope_type": "default"} if layout.rope_scaling is None else layout.rope_scaling.model_dump(exclude_none=True)
    fields["rope_parameters"] = {"rope_theta": layout.rope_theta, **scaling}
    windows = [layout.window(layer) for layer in range(layout.num_hidden_layers)]
    if layout.model_type == "mistral":
        fields["sliding_window"] = windows[0]
    elif layout.model_type in ("qwen2", "qwen3") and any(windows):
        fields |= {"use_sliding_window": True, "sliding_window": max(filter(None, windows))}
        fields["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return fields


def witness(layout: Layout, tensors: Answers, dtype: torch.dtype) -> Any:
    """transformers' model of a layout, with the weights under the names that checkpoints have."""
    config_type, model_type = MODELS[layout.model_type]
    config = config_type(**config_of(layout), attn_implementation="sdpa", pad_token_id=None)
    model = model_type(config).to(dtype)
    missing, unexpected = model.load_state_dict(
        state_of(layout, {name: torch.tensor(array) for name, array in tensors.items()}), strict=False
    )
    assert unexpected == []
    assert missing == (["lm_head.weight"] if layout.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


def state_of(layout: Layout, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights by transformers' names; parts of one fused tensor side by side."""
    parts: dict[str, list[torch.Tensor]] = {}
    for weight in weights.weights(layout):
        prefix = keymap.GPT2_PREFIX if layout.model_type == "gpt2" and weight.key != "lm_head.weight" else ""
        tensor = tensors[weight.name]
        parts.setdefault(prefix + weight.key, []).append(tensor.T if weight.transposed else tensor)
    return {key: torch.cat(found, dim=-1) for key, found in parts.items()}


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What transformers' ForCausalLMLoss computes, without its cast of the logits to float32."""
    counted = labels[:, 1:] != -100
    chosen = torch.log_softmax(logits[:, :-1], dim=-1)[counted]
    return -chosen.gather(1, labels[:, 1:][counted][:, None]).mean()


def hidden_states(layout: Layout) -> list[str]:
    """The taps that transformers' hidden_states are; the last one it answers after the norm."""
    return [taps.entering(layout), *(f"layers.{layer}.output" for layer in range(layout.num_hidden_layers - 1)), "final_norm"]


def answers(model: Any, layout: Layout, tokens: Answers) -> dict[str, torch.Tensor]:
    """Hidden states, logits and loss of a witness by the names of taps."""
    ids, labels = torch.from_numpy(tokens["ids"]), torch.from_numpy(tokens["labels"])
    out = model(input_ids=ids, labels=labels, output_hidden_states=True, use_cache=False)
    states = dict(zip(hidden_states(layout), out.hidden_states, strict=True))
    loss = out.loss if out.logits.dtype == torch.float32 else mean_loss(out.logits, labels)
    return states | {"logits": out.logits, "loss": loss}


def adapted(wanted: GraphPlan, tensors: Answers, tokens: Answers, dtype: str) -> Answers:
    """`answers`, and `grad.NAME` of each adapter matrix, of the model whose linears are W + s B A: LoRA by its definition."""
    layout = wanted.layout
    model = witness(layout, tensors, getattr(torch, dtype))
    wide = {name: torch.tensor(array).to(getattr(torch, dtype)) for name, array in tensors.items()}
    leaves = {name: wide[name].requires_grad_() for name in graph.adapter(wanted)}
    for name in [name.removesuffix(".lora_a") for name in leaves if name.endswith(".lora_a")]:
        kind = name.rpartition(".")[2]
        rank = wanted.lora.rank_pattern.get(name, wanted.lora.rank_pattern.get(kind, wanted.lora.rank))
        alpha = wanted.lora.alpha_pattern.get(name, wanted.lora.alpha_pattern.get(kind, wanted.lora.alpha))
        scale = alpha / (rank**0.5 if wanted.lora.rslora else rank)
        wide[name] = wide[name] + scale * (wide[f"{name}.lora_b"] @ wide[f"{name}.lora_a"])
    state = state_of(layout, wide)

    def merged(**arguments: Any) -> Any:
        return torch.func.functional_call(model, state, (), arguments, tie_weights=True)

    found = answers(merged, layout, tokens)
    gradients = torch.autograd.grad(found["loss"], list(leaves.values()))
    found |= {f"grad.{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach().numpy() for name, value in found.items()}


# This stack, and the distance


def own(wanted: GraphPlan, tensors: Answers, tokens: Answers, dtype: str) -> Answers:
    """This stack's answers."""
    names = [*hidden_states(wanted.layout), "logits", "loss"]
    return opened(wanted.model_copy(update={"dtype": dtype}), tensors).gradients(GRAPH, names, tokens).tensors


def responses(single: Answers, double: Answers) -> dict[str, float]:
    """What roundings of 2^-24 made of each tap and gradient, relative to its largest value."""
    return {name: float(np.abs(single[name] - exact).max() / np.abs(exact).max()) for name, exact in double.items()}


def allowed(double: Answers, found: list[dict[str, float]], dtype: str) -> dict[str, float]:
    """The largest distance of two right answers that respond to roundings as `found` says; see the top of this file."""
    unit = UNIT_RATIO if dtype == "float64" else 1.0
    largest = {kind: max(size for one in found for name, size in one.items() if is_gradient(name) == kind) for kind in (True, False)}
    return {name: MARGIN * unit * float(np.abs(exact).max()) * largest[is_gradient(name)] for name, exact in double.items()}


def is_gradient(name: str) -> bool:
    return name.startswith("grad.")


def too_far(ours: Answers, theirs: Answers, bounds: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Tap or gradient -> its distance from the witness and what is allowed, where it is more."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value.dtype == ours[name].dtype, name
        assert ours[name].any(), name
    far = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours}
    return {name: (distance, bounds[name]) for name, distance in far.items() if not distance <= bounds[name]}
