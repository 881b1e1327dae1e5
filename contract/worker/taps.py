"""Every value inside a graph that a stack shows on request: one name, one shape, one meaning.

A graph is cut into sections, each a function of the one before: `embedding`, `layers.0`, `layers.1`, ..., `head`. A tap's
full name is its section, a dot and its own name (`layers.3.q_rope`); those of `embedding` and `head` have no prefix.

Dimensions are single letters (legend)::

    B sequences    T tokens    S tokens that are looked at (= T)    D hidden_size    V vocab_size    F intermediate_size
    H num_attention_heads    K num_key_value_heads    E head_dim    Q = H E    N = K E    R rank

A linear NAME with LoRA has four taps: `NAME.base` (the frozen weight's product, and its bias), `NAME.lora_ax`, `NAME.lora_bax`
and `NAME`, their sum; one without LoRA has the last alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

EMBEDDING, HEAD = "embedding", "head"


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
"""The linears of a block, in the order of computation."""


def _linear(name: str, targets: frozenset[str]) -> tuple[Tap, ...]:
    linear = LINEARS[name]
    dims = f"BT{linear.out_dim}"
    if name not in targets:
        return (Tap(name=name, dims=dims, formula="x weight^T + bias", inputs=(linear.input,)),)
    return (
        Tap(name=f"{name}.base", dims=dims, formula="x weight^T + bias", inputs=(linear.input,)),
        Tap(name=f"{name}.lora_ax", dims="BTR", formula="x A^T", inputs=(linear.input,)),
        Tap(name=f"{name}.lora_bax", dims=dims, formula="lora_ax B^T, not scaled yet", inputs=(f"{name}.lora_ax",)),
        Tap(name=name, dims=dims, formula="base + s lora_bax", inputs=(f"{name}.base", f"{name}.lora_bax")),
    )


def embedding_taps() -> tuple[Tap, ...]:
    """The taps of the section `embedding`."""
    return (
        Tap(name="embedding", dims="BTD", formula="the embedding row of each token", inputs=("input",)),
        Tap(name="rope.cos", dims="TE", formula="cos(t theta^(-2 i / head_dim)), i = 0 .. head_dim / 2 - 1, twice over", inputs=()),
        Tap(name="rope.sin", dims="TE", formula="sin of the same angles", inputs=()),
    )


def block_taps(targets: frozenset[str]) -> tuple[Tap, ...]:
    """The taps of a section `layers.N`, in the order of computation; `rope.cos` and `rope.sin` are inputs from `embedding`."""
    return (
        Tap(name="attention_norm", dims="BTD", formula="input / sqrt(mean(input^2) + rms_norm_eps) * weight", inputs=("input",)),
        *_linear("q_proj", targets),
        *_linear("k_proj", targets),
        *_linear("v_proj", targets),
        Tap(
            name="q_rope", dims="BHTE", formula="q cos + rotate_half(q) sin; rotate_half(a, b) = (-b, a), halves of a head",
            inputs=("q_proj", "rope.cos", "rope.sin"),
        ),
        Tap(name="k_rope", dims="BKTE", formula="as q_rope", inputs=("k_proj", "rope.cos", "rope.sin")),
        Tap(
            name="scores", dims="BHTS", formula="q_rope k_rope^T / sqrt(head_dim), before the mask; head h looks at key head h // (H / K)",
            inputs=("q_rope", "k_rope"),
        ),
        Tap(name="weights", dims="BHTS", formula="softmax over s <= t; exactly 0 where s > t", inputs=("scores",)),
        Tap(name="context", dims="BTQ", formula="weights v, the heads side by side", inputs=("weights", "v_proj")),
        *_linear("o_proj", targets),
        Tap(name="attention_residual", dims="BTD", formula="input + o_proj", inputs=("input", "o_proj")),
        Tap(name="mlp_norm", dims="BTD", formula="as attention_norm, of attention_residual", inputs=("attention_residual",)),
        *_linear("gate_proj", targets),
        *_linear("up_proj", targets),
        Tap(name="activation", dims="BTF", formula="silu(gate_proj) = gate_proj / (1 + exp(-gate_proj))", inputs=("gate_proj",)),
        Tap(name="gated", dims="BTF", formula="activation * up_proj", inputs=("activation", "up_proj")),
        *_linear("down_proj", targets),
        Tap(name="output", dims="BTD", formula="attention_residual + down_proj", inputs=("attention_residual", "down_proj")),
    )  # fmt: skip


def head_taps() -> tuple[Tap, ...]:
    """The taps of the section `head`; `loss` is there where labels are given."""
    return (
        Tap(name="final_norm", dims="BTD", formula="as attention_norm", inputs=("input",)),
        Tap(name="logits", dims="BTV", formula="final_norm head^T", inputs=("final_norm",)),
        Tap(
            name="loss", dims="", formula="mean of -log softmax(logits[b, t])[labels[b, t + 1]] over labels that are not -100",
            inputs=("logits",),
        ),
    )  # fmt: skip


def section_taps(section: str, targets: frozenset[str]) -> tuple[Tap, ...]:
    """The taps of a section, in the order of computation, by their own names."""
    if section == EMBEDDING:
        return embedding_taps()
    return head_taps() if section == HEAD else block_taps(targets)


def prefix(section: str) -> str:
    """What stands before a tap's own name in its full name."""
    return "" if section in (EMBEDDING, HEAD) else f"{section}."


def sections(layers: int) -> tuple[str, ...]:
    """Every section of a graph, in order."""
    return (EMBEDDING, *(f"layers.{layer}" for layer in range(layers)), HEAD)


def full_names(layers: int, targets: frozenset[str]) -> tuple[str, ...]:
    """Every tap of a graph by its full name, in the order of computation."""
    return tuple(prefix(section) + tap.name for section in sections(layers) for tap in section_taps(section, targets))
