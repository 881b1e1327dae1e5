"""A frozen linear with LoRA on it, in float64, and its vector-Jacobian product.

    y = x W^T + bias + s B (A dropout(x))              Hu et al. 2021, arXiv:2106.09685, eq. 3
    dropout(x) = x keep / (1 - p)                      Srivastava et al. 2014, JMLR 15, with the scale taken in training

Legend: P runs, B sequences, T tokens, I in_features, O out_features, R rank. A and B are [R, I] and [O, R]; where each run has its own,
they have a leading axis P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from parity.reference.graph_operations import Constants, outer, outer_size, product, product_size
from parity.reference.rounding import Mixed, Size, each, once, products
from parity.reference.tape import Tape


def scaling(rank: int, alpha: float, *, rslora: bool) -> float:
    """s = alpha / R (Hu et al. 2021, section 4.1), or alpha / sqrt(R) with rslora (Kalajdzievski 2023, arXiv:2312.03732)."""
    return float(alpha / np.sqrt(rank)) if rslora else alpha / rank


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """What of the inputs of A is kept: keep(path, in_features) -> bool [B, T, I], given; and the probability p that one is not."""

    keep: Callable[[str, int], np.ndarray]
    probability: float


class Low(NamedTuple):
    """What a linear's way back needs of its low-rank part: dropout(x), and A of it."""

    kept_PBTI: np.ndarray
    ax_PBTR: np.ndarray


@dataclass(frozen=True, kw_only=True)
class LoraLinear:
    """One linear of a block; `lora_a_RI` and `lora_b_OR` are None where it has no LoRA.

    input: the tap that it takes; scaling: LoRA's s; path: layers.N.NAME, by which dropout knows it.
    """

    name: str
    input: str
    weight_OI: np.ndarray
    bias_O: np.ndarray | None
    lora_a_RI: np.ndarray | None
    lora_b_OR: np.ndarray | None
    scaling: float
    constants: Constants
    path: str = ""
    dropout: Dropout | None = None

    def forward(self, tape: Tape, x_PBTI: np.ndarray) -> tuple[np.ndarray, Low | None]:
        """y [P, B, T, O] and, with LoRA, what the way back needs."""
        base = product(x_PBTI, self.weight_OI.T) + (0.0 if self.bias_O is None else self.bias_O)

        def base_size() -> Mixed:
            if self.bias_O is None:
                return product_size(base, x_PBTI, self.weight_OI.T)
            squares = product(x_PBTI * x_PBTI, (self.weight_OI * self.weight_OI).T) + self.bias_O * self.bias_O
            return once(products(base, squares, self.weight_OI.shape[1] + 1), base)

        if self.lora_a_RI is None or self.lora_b_OR is None:
            return tape.tap(self.name, base, base_size), None
        a_IR, b_RO = self.lora_a_RI.swapaxes(-1, -2), self.lora_b_OR.swapaxes(-1, -2)
        base_PBTO = tape.tap(f"{self.name}.base", base, base_size)
        kept = x_PBTI if self.dropout is None else tape.near(f"{self.name}.dropout", *self._rescaled(x_PBTI))
        ax = product(kept, a_IR)
        ax_PBTR = tape.tap(f"{self.name}.lora_ax", ax, lambda: product_size(ax, kept, a_IR))
        bax = product(ax_PBTR, b_RO)
        bax_PBTO = tape.tap(f"{self.name}.lora_bax", bax, lambda: product_size(bax, ax_PBTR, b_RO))
        scaled = self.constants.beside(bax, self.scaling) * bax_PBTO
        y = base_PBTO + scaled
        return tape.tap(self.name, y, lambda: each(scaled, y)), Low(kept, ax_PBTR)

    def backward(self, tape: Tape, x_PBTI: np.ndarray, low: Low | None) -> None:
        """B_bar = (s y_bar)^T (A x);  (A x)_bar = B^T (s y_bar);  A_bar = (A x)_bar^T x;  x_bar = W^T y_bar + A^T (A x)_bar.

        With dropout x is dropout(x) in the first and third, and the last term goes through it.
        """
        y_bar = tape.bar(self.name)
        if self.lora_a_RI is not None and self.lora_b_OR is not None and low is not None:
            a_RI, b_OR = self.lora_a_RI, self.lora_b_OR
            scaled = self.constants.beside(y_bar, self.scaling) * y_bar
            tape.flow(f"{self.name}.base", y_bar)
            tape.flow(f"{self.name}.lora_bax", scaled, lambda: each(scaled))
            bax_bar = tape.bar(f"{self.name}.lora_bax")
            kept, ax_PBTR = low
            b_bar = outer(bax_bar, ax_PBTR)
            tape.grad(f"{self.name}.lora_b", b_bar, lambda: outer_size(b_bar, bax_bar, ax_PBTR))
            inner = product(bax_bar, b_OR)
            tape.flow(f"{self.name}.lora_ax", inner, lambda: product_size(inner, bax_bar, b_OR))
            ax_bar = tape.bar(f"{self.name}.lora_ax")
            a_bar = outer(ax_bar, kept)
            tape.grad(f"{self.name}.lora_a", a_bar, lambda: outer_size(a_bar, ax_bar, kept))
            kept_bar = product(ax_bar, a_RI)
            if self.dropout is None:
                tape.flow(self.input, kept_bar, lambda: product_size(kept_bar, ax_bar, a_RI))
            else:
                noisy = tape.near(f"{self.name}.dropout_bar", kept_bar, lambda: product_size(kept_bar, ax_bar, a_RI))
                tape.flow(self.input, *self._rescaled(noisy))
            y_bar = tape.bar(f"{self.name}.base")
        through = product(y_bar, self.weight_OI)
        base_bar = y_bar
        tape.flow(self.input, through, lambda: product_size(through, base_bar, self.weight_OI))

    def _rescaled(self, x_PBTI: np.ndarray) -> tuple[np.ndarray, Size]:
        """x keep / (1 - p), as a quotient or as a product by a reciprocal, and its size."""
        assert self.dropout is not None
        share = self.constants.beside(x_PBTI, 1 - self.dropout.probability)
        y = np.where(self.dropout.keep(self.path, x_PBTI.shape[-1]), x_PBTI / share, 0.0)
        return y, lambda: each(y, y)
