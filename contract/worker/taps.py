"""Every value inside a graph that a stack shows on request: one name, one shape, one meaning.

A graph is cut into sections, each a function of the one before: `embedding`, `layers.0`, `layers.1`, ..., `head`. A tap's
full name is its section, a dot and its own name (`layers.3.q_rope`); those of `embedding` and `head` have no prefix.

Dimensions are single letters (legend)::

    B sequences    T tokens    S tokens that are looked at (= T)    D hidden_size    V vocab_size    F intermediate_size
    H num_attention_heads    K num_key_value_heads    E head_dim    Q = H E    N = K E    R rank of the linear at hand

A linear NAME with LoRA has four taps: `NAME.base` (the frozen weight's product, and its bias), `NAME.lora_ax`, `NAME.lora_bax`
and `NAME`, their sum; one without LoRA has the last alone. Which taps there are follows from the architecture: GPT-2 has
`position_embedding` and `embedded`, and neither RoPE nor a gate; Qwen3 has `q_norm` and `k_norm`. The proxy graph has the same few
whatever the architecture: `embedding`; in a block `norm`, the linear `o_proj` (without its bias, should there be one) and `output`; in the
head `scaled`, the linear `lm_head`, whose weight is the embedding, and `loss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from contract.model.layout import GPT2Layout, Layout

if TYPE_CHECKING:
    from contract.worker.plan import GraphPlan

EMBEDDING, HEAD = "embedding", "head"

ABSENT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "chunked_loss": ("logits", "lm_head"),
        "fused_attention": ("scores", "weights"),
        "fused_lora": ("base", "lora_ax", "lora_bax"),
        "fused_elementwise": ("activation",),
    }
)
"""Production path -> taps that it never holds, by the first or the last part of their own names."""

MIDDLE, LM_HEAD = "o_proj", "lm_head"
"""The linear of the proxy graph's middle blocks, and that of its head."""

PROXY_EPS = 1e-6
"""eps of the proxy graph's norms."""

PLACED = ("rope.cos", "rope.sin", "position_embedding")
"""Taps that depend on positions alone: where a request gives positions, they have a leading dimension B."""


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One value: its dimensions by letter, how it follows from others, and which taps of its section it follows from.

    In `inputs`, `input` is what the section is given: the residual stream (in `embedding` the token ids, no tap).
    """

    name: str
    dims: str
    formula: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear of a block: y = x weight^T + bias, with LoRA y + s B (A x)."""

    name: str
    input: str
    in_dim: str
    out_dim: str


LINEARS: Mapping[str, Linear] = MappingProxyType(
    {
        linear.name: linear
        for linear in (
            Linear(name="q_proj", input="attention_norm", in_dim="D", out_dim="Q"),
            Linear(name="k_proj", input="attention_norm", in_dim="D", out_dim="N"),
            Linear(name="v_proj", input="attention_norm", in_dim="D", out_dim="N"),
            Linear(name="o_proj", input="context", in_dim="Q", out_dim="D"),
            Linear(name="gate_proj", input="mlp_norm", in_dim="D", out_dim="F"),
            Linear(name="up_proj", input="mlp_norm", in_dim="D", out_dim="F"),
            Linear(name="down_proj", input="gated", in_dim="F", out_dim="D"),
        )
    }
)
"""The linears of a block with a gated MLP, in the order of computation."""


def linears(layout: Layout) -> dict[str, Linear]:
    """The linears of a layout's blocks, in the order of computation."""
    found = {name: LINEARS[name] for name in layout.linears}
    if "gate_proj" not in found:
        found["down_proj"] = dataclasses.replace(LINEARS["down_proj"], input="activation")
    return found


def section_taps(plan: GraphPlan, section: str) -> tuple[Tap, ...]:
    """The taps of a section that the plan's paths hold, in the order of computation, by their own names.

    What follows from a tap that is not held follows from that one's inputs.
    """
    held: list[Tap] = []
    inputs: dict[str, tuple[str, ...]] = {}
    for tap in _section(plan, section):
        through = tuple(source for name in tap.inputs for source in inputs.get(name, (name,)))
        if without(plan, tap.name) is not None:
            inputs[tap.name] = through
        else:
            held.append(dataclasses.replace(tap, inputs=through))
    return tuple(held)


def without(plan: GraphPlan, name: str) -> str | None:
    """The plan's path that never holds a tap, by the tap's own or full name; None where all do."""
    parts = {name.partition(".")[0], name.rpartition(".")[2]}
    return next((path for path in plan.paths if parts & set(ABSENT.get(path, ()))), None)


def full_names(plan: GraphPlan) -> tuple[str, ...]:
    """Every tap of a graph by its full name, in the order of computation."""
    return tuple(prefix(section) + tap.name for section in sections(plan.blocks) for tap in section_taps(plan, section))


def prefix(section: str) -> str:
    """What stands before a tap's own name in its full name."""
    return "" if section in (EMBEDDING, HEAD) else f"{section}."


def sections(layers: int) -> tuple[str, ...]:
    """Every section of a graph, in order."""
    return (EMBEDDING, *(f"layers.{layer}" for layer in range(layers)), HEAD)


def entering(layout: Layout) -> str:
    """The tap of `embedding` that enters the first block."""
    return "embedded" if isinstance(layout, GPT2Layout) else "embedding"


def _section(plan: GraphPlan, section: str) -> tuple[Tap, ...]:
    if plan.graph == "qlora_proxy_v1":
        return _proxy_taps(section, plan.targets)
    if section == EMBEDDING:
        return _embedding_taps(plan.layout)
    return _head_taps(plan.layout) if section == HEAD else _block_taps(plan.layout, plan.targets)


def _proxy_taps(section: str, targets: frozenset[str]) -> tuple[Tap, ...]:
    """n is the number of middle blocks; where there are none, nothing is scaled."""
    if section == EMBEDDING:
        formula = "the embedding row of each token; nothing else of a sequence goes into the logits of its successor"
        return (Tap(name="embedding", dims="BTD", formula=formula, inputs=("input",)),)
    if section == HEAD:
        return (
            Tap(name="scaled", dims="BTD", formula="input / sqrt(n); n = 0: input", inputs=("input",)),
            *_linear(Linear(name=LM_HEAD, input="scaled", in_dim="D", out_dim="V"), targets, "x embedding^T"),
            _loss(LM_HEAD),
        )
    return (
        Tap(name="norm", dims="BTD", formula=f"input / sqrt(mean(input^2) + {PROXY_EPS:g})", inputs=("input",)),
        *_linear(Linear(name=MIDDLE, input="norm", in_dim="D", out_dim="D"), targets, "x weight^T"),
        Tap(name="output", dims="BTD", formula=f"input + {MIDDLE} / sqrt(n)", inputs=("input", MIDDLE)),
    )


def _embedding_taps(layout: Layout) -> tuple[Tap, ...]:
    token = Tap(name="embedding", dims="BTD", formula="the embedding row of each token", inputs=("input",))
    if isinstance(layout, GPT2Layout):
        return (
            token,
            Tap(name="position_embedding", dims="TD", formula="the position embedding's row of each position", inputs=()),
            Tap(name="embedded", dims="BTD", formula="embedding + position_embedding", inputs=("embedding", "position_embedding")),
        )
    return (
        token,
        Tap(
            name="rope.cos", dims="TE",
            formula="cos(t theta^(-2 i / head_dim)), i = 0 .. head_dim / 2 - 1, twice over; t the position; scaled as RopeScaling says",
            inputs=(),
        ),
        Tap(name="rope.sin", dims="TE", formula="sin of the same angles", inputs=()),
    )  # fmt: skip


def _block_taps(layout: Layout, targets: frozenset[str]) -> tuple[Tap, ...]:
    """`rope.cos` and `rope.sin` are inputs from `embedding`."""
    own = linears(layout)
    return (
        Tap(name="attention_norm", dims="BTD", formula=_norm_formula(layout), inputs=("input",)),
        *(tap for name in ("q_proj", "k_proj", "v_proj") for tap in _linear(own[name], targets)),
        *_attention_taps(layout),
        *_linear(own["o_proj"], targets),
        Tap(name="attention_residual", dims="BTD", formula="input + o_proj", inputs=("input", "o_proj")),
        Tap(name="mlp_norm", dims="BTD", formula="as attention_norm, of attention_residual", inputs=("attention_residual",)),
        *_mlp_taps(own, targets),
        *_linear(own["down_proj"], targets),
        Tap(name="output", dims="BTD", formula="attention_residual + down_proj", inputs=("attention_residual", "down_proj")),
    )


def _attention_taps(layout: Layout) -> tuple[Tap, ...]:
    """From the projections to the context."""
    norms, turned = layout.head_norms, not isinstance(layout, GPT2Layout)
    scale = "scores' scale: 1 / sqrt(head_dim)"
    if isinstance(layout, GPT2Layout):
        scale += " unless scale_attn_weights is false; / (layer + 1) with scale_attn_by_inverse_layer_idx, layers from 0"
    taps = [
        Tap(
            name=name, dims=dims, formula="x / sqrt(mean(x^2) + rms_norm_eps) * weight over each head of the projection",
            inputs=(name.replace("norm", "proj"),),
        )
        for name, dims in (("q_norm", "BHTE"), ("k_norm", "BKTE")) if name in norms
    ]  # fmt: skip
    q, k = norms or ("q_proj", "k_proj")
    if turned:
        formula = f"x cos + rotate_half(x) sin; rotate_half(a, b) = (-b, a), halves of a head; x is {q}"
        taps += [
            Tap(name="q_rope", dims="BHTE", formula=formula, inputs=(q, "rope.cos", "rope.sin")),
            Tap(name="k_rope", dims="BKTE", formula="as q_rope", inputs=(k, "rope.cos", "rope.sin")),
        ]
        q, k = "q_rope", "k_rope"
    return (
        *taps,
        Tap(
            name="scores", dims="BHTS", formula=f"{q} {k}^T scale, before the mask; head h looks at key head h // (H / K); {scale}",
            inputs=(q, k),
        ),
        Tap(
            name="weights", dims="BHTS",
            formula="softmax over the s that t sees: of the same segment, s <= t, t - s < window where the layer has one; else exactly 0",
            inputs=("scores",),
        ),
        Tap(name="context", dims="BTQ", formula="weights v, the heads side by side", inputs=("weights", "v_proj")),
    )  # fmt: skip


def _mlp_taps(own: Mapping[str, Linear], targets: frozenset[str]) -> tuple[Tap, ...]:
    if "gate_proj" not in own:
        gelu = "gelu_new: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); gelu: x / 2 (1 + erf(x / sqrt(2))); x is up_proj"
        return (*_linear(own["up_proj"], targets), Tap(name="activation", dims="BTF", formula=gelu, inputs=("up_proj",)))
    return (
        *_linear(own["gate_proj"], targets),
        *_linear(own["up_proj"], targets),
        Tap(name="activation", dims="BTF", formula="silu(gate_proj) = gate_proj / (1 + exp(-gate_proj))", inputs=("gate_proj",)),
        Tap(name="gated", dims="BTF", formula="activation * up_proj", inputs=("activation", "up_proj")),
    )


def _head_taps(layout: Layout) -> tuple[Tap, ...]:
    """`loss` is there where labels are given."""
    return (
        Tap(name="final_norm", dims="BTD", formula=_norm_formula(layout), inputs=("input",)),
        Tap(name="logits", dims="BTV", formula="final_norm head^T", inputs=("final_norm",)),
        _loss("logits"),
    )


def _loss(logits: str) -> Tap:
    formula = f"mean of -log softmax({logits}[b, t])[labels[b, t + 1]] over labels that are not -100"
    return Tap(name="loss", dims="", formula=formula, inputs=(logits,))


def _norm_formula(layout: Layout) -> str:
    if isinstance(layout, GPT2Layout):
        return "(input - mean(input)) / sqrt(mean((input - mean(input))^2) + layer_norm_epsilon) * weight + bias"
    return "input / sqrt(mean(input^2) + rms_norm_eps) * weight"


def _linear(linear: Linear, targets: frozenset[str], product: str = "x weight^T + bias") -> tuple[Tap, ...]:
    name, dims = linear.name, f"BT{linear.out_dim}"
    if name not in targets:
        return (Tap(name=name, dims=dims, formula=product, inputs=(linear.input,)),)
    return (
        Tap(name=f"{name}.base", dims=dims, formula=product, inputs=(linear.input,)),
        Tap(name=f"{name}.lora_ax", dims="BTR", formula="x A^T", inputs=(linear.input,)),
        Tap(name=f"{name}.lora_bax", dims=dims, formula="lora_ax B^T, not scaled yet", inputs=(f"{name}.lora_ax",)),
        Tap(name=name, dims=dims, formula="base + s lora_bax", inputs=(f"{name}.base", f"{name}.lora_bax")),
    )
