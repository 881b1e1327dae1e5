"""The ordinary input: what a team's own test of two programs has, with the seed 42.

Primitives take standard normal numbers of even shapes, norms' weights are one, optimizer states zero, an adapter's B is zero. Graphs are
of the sizes of transformers' CausalLMModelTester (tests/causal_lm_tester.py), freshly initialised: normal weights of deviation 0.02,
norms one, biases zero, r = 8 and alpha = 16 on q_proj and v_proj, B = 0; no padding, every token a label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, MistralLayout, Qwen2Layout, Qwen3Layout
from contract.worker import graph
from contract.worker.capabilities import FUNCTIONS
from contract.worker.operations import OPERATIONS
from contract.worker.plan import GraphPlan, Lora, Nf4
from parity.checks.artifact_case import ArtifactCase, on_disk
from parity.checks.check import Ask, Case, Check, GraphNeeds, Plan, Request
from parity.checks.graph_case import ForwardAsk, GraphAsk, GraphCase
from parity.checks.graph_draws import adapter_of, case_of
from parity.reference import nf4
from parity.reference.graph import Batch

SEED = 42
BATCH, TOKENS = 13, 7
DEVIATION = 0.02
LORA = Lora(rank=8, alpha=16.0, targets=("q_proj", "v_proj"))
PROXY_LORA = Lora(rank=8, alpha=16.0)
NF4 = Nf4(block_size=64, double_quant=True, offsets_given=True)
"""QLoRA's: blocks of 64, nested."""

_SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
_ROPE: dict[str, Any] = {**_SIZES, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False}
_WHOLE_BLOCKS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
"""Of NF4 bases, whose rows are whole blocks, as those of any model in use."""

LAYOUTS: Mapping[str, Layout] = {
    "llama": LlamaLayout(**_ROPE, attention_bias=False, mlp_bias=False),
    "mistral": MistralLayout(**_ROPE),
    "qwen2": Qwen2Layout(**_ROPE),
    "qwen3": Qwen3Layout(**_ROPE, attention_bias=False),
    "gpt2": GPT2Layout(
        **_SIZES, layer_norm_epsilon=1e-5, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, activation_function="gelu_new", tie_word_embeddings=True,
    ),
}  # fmt: skip

_LETTERS = {"M": 16, "K": 32, "N": 16, "T": 16, "I": 64, "O": 64, "V": 99, "D": 32, "R": 8, "B": 2, "H": 4, "E": 16}
_OF_OPERATION: Mapping[str, Mapping[str, int]] = {
    "attention": {"K": 4}, "adamw_step": {"N": 4096}, "adamw_8bit_step": {"N": 4096}, "silu": {"T": 128}, "gelu": {"T": 128},
    "elementary": {"T": 128},
}  # fmt: skip
"""As many heads of keys as of queries; a whole block of a state in 8 bits."""

_ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
_NF4_SHAPE = {"block_size": 64, "out_features": 64, "in_features": 64}
ATTRIBUTES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "rms_norm": ({"eps": 1e-6},), "layer_norm": ({"eps": 1e-5},), "rope_tables": ({"head_dim": 16, "theta": 1e4, "scaling": None},),
    "rope": ({"theta": 1e4, "scaling": None},), "attention": ({"window": None},),
    "gelu": ({"approximate": "tanh"}, {"approximate": "none"}),
    "lora_linear": ({"alpha": 16.0, "rslora": False, "dropout": 0.0},), "clip_gradients": ({"max_norm": 1.0},), "adamw_step": (_ADAMW,),
    "adamw_8bit_step": (_ADAMW,), "nf4_quantize": ({"block_size": 64},), "nf4_dequantize": (_NF4_SHAPE,), "nf4_linear": (_NF4_SHAPE,),
}  # fmt: skip
"""By operation: of AdamW torch.optim's defaults, of clipping transformers'; of others what models in use have."""

_ZERO, _ONE = ("lora_b", "m", "v"), ("rms_norm.weight", "layer_norm.weight")


def check(hard: Check) -> Check:
    """A check of the same operations or graphs on the ordinary input alone."""
    case, plans = _case(hard), []
    for plan in hard.plans:
        asks = _asks(hard, plan, case)
        needs = None if plan.graph is None else _needs(plan.graph)
        plans.append(dataclasses.replace(plan, requests=partial(_given, asks), graph=needs))
    return dataclasses.replace(
        hard, id=f"ordinary.{hard.id}", plans=tuple(plans), cases=None, fixed_cases=lambda: iter((case,)), fixed_count=1, few=None
    )


def _given(asks: tuple[Ask, ...], case: Case) -> tuple[Ask, ...]:
    return asks


def _needs(needs: GraphNeeds) -> GraphNeeds:
    return dataclasses.replace(needs, layout_options=(), packing=False, patterns=False)


def _case(hard: Check) -> Case:
    if hard.tier in "AB":
        return Case(name="ordinary", inputs={})
    case = graph_case(next(plan.graph for plan in hard.plans if plan.graph is not None), trained=hard.tier == "E")
    return on_disk(case) if hard.tier == "E" else case


def _asks(hard: Check, plan: Plan, case: Case) -> tuple[Ask, ...]:
    if isinstance(case, ArtifactCase):
        return plan.requests(case)
    if not isinstance(case, GraphCase):
        return tuple(request for op in hard.operations for request in requests(op, hard.id))
    assert plan.graph is not None
    asked = case.plan.model_copy(update={"dtype": plan.dtype, "paths": plan.graph.paths})
    return GraphAsk(case=case, plan=asked), ForwardAsk(case=case, plan=asked)


def requests(op: str, check_id: str) -> Iterator[Request]:
    """Requests of one operation, with its gradient where it has one."""
    attributes = ATTRIBUTES.get(op, ({},))
    if op == "elementary":
        named = check_id.rpartition(".")[2]
        attributes = tuple({"function": function} for function in FUNCTIONS if named in (function, "elementary_special"))
    for attrs in attributes:
        yield Request(op=op, attrs={**attrs, "dtype": "float32"} if not op.startswith("nf4_") else attrs, tensors=tensors(op))


def tensors(op: str) -> dict[str, np.ndarray]:
    """The inputs of an operation, float32."""
    rng = np.random.default_rng(SEED)
    if op.startswith("nf4_"):
        return _nf4(op, rng)
    sizes = {**_LETTERS, **_OF_OPERATION.get(op, {})}
    made = {}
    for name, spec in {**OPERATIONS[op].inputs, **OPERATIONS[op].cotangents()}.items():
        shape = tuple(sizes[letter] for letter in spec.dims)
        if not spec.optional:
            made[name] = _tensor(op, name, spec.dtype, shape, rng)
    return made


def _tensor(op: str, name: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name == "positions":
        return np.array(np.broadcast_to(np.arange(shape[-1]), shape))
    if dtype == "int64":  # ids, labels, and the number of the first step
        return rng.integers(0, _LETTERS["V"], shape) if shape else np.zeros(shape, np.int64)
    if name in _ZERO:
        return np.zeros(shape, np.float32)
    if f"{op}.{name}" in _ONE:
        return np.ones(shape, np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def _nf4(op: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A standard normal weight of whole blocks, and what is made of it."""
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    quantized = nf4.quantize(weight, NF4.block_size)
    offset = nf4.offset(weight, NF4.block_size)
    codes, nested = nf4.nest(quantized.absmax, offset)
    found = {
        "weight": weight, "packed": quantized.packed, "absmax": quantized.absmax, "offset": offset, "absmax_codes": codes,
        "nested_absmax": nested, "x": rng.standard_normal((16, 64)).astype(np.float32),
        "y_bar": rng.standard_normal((16, 64)).astype(np.float32),
    }  # fmt: skip
    operation = OPERATIONS[op]
    wanted = [name for name, spec in {**operation.inputs, **operation.cotangents()}.items() if not spec.optional]
    return {name: found[name] for name in wanted}


def layout_of(model_type: str, *, quantized: bool) -> Layout:
    """The ordinary model of an architecture."""
    layout = LAYOUTS[model_type]
    return layout.model_copy(update=_WHOLE_BLOCKS) if quantized else layout


def graph_case(needs: GraphNeeds, *, trained: bool = False) -> GraphCase:
    """The ordinary graph of an architecture.

    Args:
        trained: B is not zero, as in any file that holds an adapter.
    """
    layout = layout_of(needs.model_types[0] if needs.model_types else "llama", quantized=needs.nf4)
    plan = GraphPlan(
        graph="qlora_proxy_v1" if needs.proxy else "full_causal", layout=layout, dtype="float64", lora=PROXY_LORA if needs.proxy else LORA,
        base=NF4 if needs.nf4 else None, middle_blocks=None,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    weights = weights_of(rng, plan)
    ids = rng.integers(0, layout.vocab_size, (BATCH, TOKENS))
    name = f"ordinary {layout.model_type}, seed {SEED}"
    return case_of(name, plan, weights, adapter_of(plan, SEED, initial=not trained), Batch(ids=ids, labels=ids.copy()), SEED)


def weights_of(rng: np.random.Generator, plan: GraphPlan) -> dict[str, np.ndarray]:
    """Freshly initialised weights."""
    plain = graph.weights(plan.model_copy(update={"base": None}))
    return {name: _weight(rng, name, shape) for name, (shape, _) in plain.items()}


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.full(shape, 1.0 if name.endswith("norm") else 0.0, np.float32)
    return (DEVIATION * rng.standard_normal(shape)).astype(np.float32)
