"""One block of a Llama-type graph in float64 (Touvron et al. 2023, arXiv:2302.13971, section 2.2), and its vector-Jacobian product.

    h = x + o_proj(attention(q_proj(n), k_proj(n), v_proj(n))),  n = RMSNorm(x)
    y = h + down_proj(silu(gate_proj(m)) * up_proj(m)),          m = RMSNorm(h)          SwiGLU: Shazeer 2020, arXiv:2002.05202, eq. 6

Legend: P runs, B sequences, T tokens, D hidden_size, F intermediate_size, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parity.reference.llama_attention import Attention
from parity.reference.llama_linear import LoraLinear
from parity.reference.llama_operations import Constants, RmsNorm, Silu
from parity.reference.rounding import rounded
from parity.reference.tape import Tape


class Block:
    """One evaluation of a block: `forward`, then `backward`.

    weight: a weight's own name -> float64, asked for when it is used and not kept; linear: a linear's name -> it, with its LoRA.
    """

    def __init__(
        self, tape: Tape, *, weight: Callable[[str], np.ndarray], linear: Callable[[str], LoraLinear], key_heads: int, constants: Constants
    ) -> None:
        self._tape = tape
        self._weight = weight
        self._linear = linear
        self._key_heads = key_heads
        self._constants = constants
        self._inputs: dict[str, np.ndarray] = {}
        self._ax: dict[str, np.ndarray | None] = {}

    def forward(self, x_PBTD: np.ndarray, tables: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The residual stream after the block; tables: cos and sin [P, T, E]."""
        tape = self._tape
        x_PBTD = tape.enter(x_PBTD)
        self._norm, normed = RmsNorm.forward(tape, "attention_norm", x_PBTD, self._weight("attention_norm"), self._constants)
        qkv = (self._through("q_proj", normed), self._through("k_proj", normed), self._through("v_proj", normed))
        self._attention, context = Attention.forward(tape, qkv, tables, self._key_heads, self._constants)
        h = x_PBTD + self._through("o_proj", context)
        h_PBTD = tape.tap("attention_residual", h, lambda: rounded(h))

        self._mlp_norm, normed = RmsNorm.forward(tape, "mlp_norm", h_PBTD, self._weight("mlp_norm"), self._constants)
        gate_PBTF = self._through("gate_proj", normed)
        self._up_PBTF = self._through("up_proj", normed)
        self._silu, self._activation_PBTF = Silu.forward(tape, "activation", gate_PBTF)
        gated = self._activation_PBTF * self._up_PBTF
        gated_PBTF = tape.tap("gated", gated, lambda: rounded(gated))
        y = h_PBTD + self._through("down_proj", gated_PBTF)
        return tape.tap("output", y, lambda: rounded(y))

    def backward(self) -> np.ndarray:
        """The cotangent of the residual stream before the block; that of `output` has been given to the tape."""
        tape = self._tape
        y_bar = tape.bar("output")
        tape.flow("attention_residual", y_bar)
        tape.flow("down_proj", y_bar)
        self._back("down_proj")
        gated_bar = tape.bar("gated")
        by_activation, by_up = gated_bar * self._up_PBTF, gated_bar * self._activation_PBTF
        tape.flow("activation", by_activation, lambda: rounded(by_activation))
        tape.flow("up_proj", by_up, lambda: rounded(by_up))
        self._silu.backward(tape, tape.bar("activation"), "gate_proj")
        self._back("up_proj")
        self._back("gate_proj")
        self._mlp_norm.backward(tape, "attention_residual", self._constants)

        h_bar = tape.bar("attention_residual")
        tape.flow("input", h_bar)
        tape.flow("o_proj", h_bar)
        self._back("o_proj")
        self._attention.backward(tape)
        for name in ("v_proj", "k_proj", "q_proj"):
            self._back(name)
        self._norm.backward(tape, "input", self._constants)
        return tape.leave()

    def _through(self, name: str, x: np.ndarray) -> np.ndarray:
        y, self._ax[name] = self._linear(name).forward(self._tape, x)
        self._inputs[name] = x
        return y

    def _back(self, name: str) -> None:
        self._linear(name).backward(self._tape, self._inputs.pop(name), self._ax.pop(name))
