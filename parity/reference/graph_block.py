"""One block of a decoder's graph in float64, and its vector-Jacobian product.

    h = x + o_proj(attention(q_proj(n), k_proj(n), v_proj(n))),  n = norm(x)             Touvron et al. 2023, arXiv:2302.13971, section 2.2
    y = h + down_proj(silu(gate_proj(m)) * up_proj(m)),          m = norm(h)             SwiGLU: Shazeer 2020, arXiv:2002.05202, eq. 6
    y = h + down_proj(gelu(up_proj(m)))                                                  GPT-2: Radford et al. 2019

q and k are turned (Llama and what is built like it), normed head by head and turned (Qwen3), or taken as they are (GPT-2).

Legend: P runs, B sequences, T tokens, D hidden_size, F intermediate_size, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from contract.model.layout import GPT2Layout, Layout
from parity.reference.graph_activation import Gelu, Silu
from parity.reference.graph_attention import Attention, Rope, fold_of, heads
from parity.reference.graph_linear import LoraLinear, Low
from parity.reference.graph_norm import LayerNorm, LayerNormed, RmsNorm, RmsNormed
from parity.reference.graph_operations import Constants
from parity.reference.rounding import each
from parity.reference.tape import Tape


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a block is made of.

    norm: a norm by its name, with its weights; linear: a linear by its name, with its LoRA. They are asked for when they are used, and not
    kept. scale: what scores are multiplied by.
    """

    layout: Layout
    norm: Callable[[str], RmsNorm | LayerNorm]
    linear: Callable[[str], LoraLinear]
    scale: float
    constants: Constants


class Block:
    """One evaluation of a block: `forward`, then `backward`."""

    def __init__(self, tape: Tape, parts: Parts) -> None:
        self._tape = tape
        self._parts = parts
        self._inputs: dict[str, np.ndarray] = {}
        self._low: dict[str, Low | None] = {}
        self._normed: dict[str, RmsNormed | LayerNormed] = {}

    def forward(self, x_PBTD: np.ndarray, tables: tuple[np.ndarray, np.ndarray] | None, seen: np.ndarray) -> np.ndarray:
        """The residual stream after the block; tables: cos and sin [P, T, E] or [P, B, T, E]; seen: [T, S] or [B, 1, T, S]."""
        tape = self._tape
        x_PBTD = tape.enter(x_PBTD)
        h = x_PBTD + self._through("o_proj", self._context(self._norm("attention_norm", x_PBTD), tables, seen))
        h_PBTD = tape.tap("attention_residual", h, lambda: each(h))
        y = h_PBTD + self._through("down_proj", self._inner(self._norm("mlp_norm", h_PBTD)))
        return tape.tap("output", y, lambda: each(y))

    def backward(self) -> np.ndarray:
        """The cotangent of the residual stream before the block; that of `output` has been given to the tape."""
        tape = self._tape
        y_bar = tape.bar("output")
        tape.flow("attention_residual", y_bar)
        tape.flow("down_proj", y_bar)
        self._back("down_proj")
        self._inner_backward()
        self._normed.pop("mlp_norm").backward(tape, "attention_residual")

        h_bar = tape.bar("attention_residual")
        tape.flow("input", h_bar)
        tape.flow("o_proj", h_bar)
        self._back("o_proj")
        self._context_backward()
        for name in ("v_proj", "k_proj", "q_proj"):
            self._back(name)
        self._normed.pop("attention_norm").backward(tape, "input")
        return tape.leave()

    def _context(self, normed_PBTD: np.ndarray, tables: tuple[np.ndarray, np.ndarray] | None, seen: np.ndarray) -> np.ndarray:
        layout = self._parts.layout
        q, k, v = (self._through(name, normed_PBTD) for name in ("q_proj", "k_proj", "v_proj"))
        q_name, q_PBHTE = self._head_normed("q_proj", heads(q, layout.num_attention_heads))
        k_name, k_PBKTE = self._head_normed("k_proj", heads(k, layout.num_key_value_heads))
        self._q_tap, self._k_tap = q_name, k_name
        if tables is not None:
            self._q_turned, q_PBHTE = Rope.forward(self._tape, "q_rope", q_PBHTE, tables)
            self._k_turned, k_PBKTE = Rope.forward(self._tape, "k_rope", k_PBKTE, tables)
            q_name, k_name = "q_rope", "k_rope"
        qkv = q_PBHTE, k_PBKTE, heads(v, layout.num_key_value_heads)
        scale = self._parts.constants.beside(q_PBHTE, self._parts.scale)
        self._attention, context = Attention.forward(self._tape, (q_name, k_name), qkv, scale, seen)
        return context

    def _head_normed(self, projected: str, x_PBHTE: np.ndarray) -> tuple[str, np.ndarray]:
        """A projection, normed where the layout has norms of heads; and the tap that it is."""
        name = projected.replace("proj", "norm")
        return (name, self._norm(name, x_PBHTE)) if name in self._parts.layout.head_norms else (projected, x_PBHTE)

    def _context_backward(self) -> None:
        """From the context's cotangent to those of the three projections."""
        self._attention.backward(self._tape)
        if self._attention.names != (self._q_tap, self._k_tap):
            self._q_turned.backward(self._tape, self._q_tap)
            self._k_turned.backward(self._tape, self._k_tap)
        for name in self._parts.layout.head_norms:
            projected = name.replace("norm", "proj")
            self._normed.pop(name).backward(self._tape, projected, fold_of(projected))

    def _inner(self, normed_PBTD: np.ndarray) -> np.ndarray:
        """What down_proj takes."""
        tape, layout = self._tape, self._parts.layout
        if isinstance(layout, GPT2Layout):
            up_PBTF = self._through("up_proj", normed_PBTD)
            self._gelu, activation_PBTF = Gelu.forward(tape, "activation", up_PBTF, layout.activation_function, self._parts.constants)
            return activation_PBTF
        gate_PBTF = self._through("gate_proj", normed_PBTD)
        self._up_PBTF = self._through("up_proj", normed_PBTD)
        self._silu, self._activation_PBTF = Silu.forward(tape, "activation", gate_PBTF)
        gated = self._activation_PBTF * self._up_PBTF
        return tape.tap("gated", gated, lambda: each(gated))

    def _inner_backward(self) -> None:
        tape = self._tape
        if isinstance(self._parts.layout, GPT2Layout):
            self._gelu.backward(tape, tape.bar("activation"), "up_proj")
            self._back("up_proj")
            return
        gated_bar = tape.bar("gated")
        by_activation, by_up = gated_bar * self._up_PBTF, gated_bar * self._activation_PBTF
        tape.flow("activation", by_activation, lambda: each(by_activation))
        tape.flow("up_proj", by_up, lambda: each(by_up))
        self._silu.backward(tape, tape.bar("activation"), "gate_proj")
        self._back("up_proj")
        self._back("gate_proj")

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        self._normed[name], y = self._parts.norm(name).forward(self._tape, x)
        return y

    def _through(self, name: str, x: np.ndarray) -> np.ndarray:
        y, self._low[name] = self._parts.linear(name).forward(self._tape, x)
        self._inputs[name] = x
        return y

    def _back(self, name: str) -> None:
        self._parts.linear(name).backward(self._tape, self._inputs.pop(name), self._low.pop(name))
