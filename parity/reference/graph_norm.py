"""The norms of a decoder's graph in float64, each beside its vector-Jacobian product.

Legend: P runs, X any axes, D the last one: hidden_size, or head_dim where a norm is over each head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parity.reference.graph_operations import Constants
from parity.reference.rounding import none, once, products, rounded, summed, together
from parity.reference.tape import Tape

Fold = Callable[[np.ndarray], np.ndarray]


def same(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; eps under the root as Llama has it)."""

    name: str
    weight_D: np.ndarray
    eps: float
    constants: Constants

    def forward(self, tape: Tape, x_PXD: np.ndarray) -> tuple[RmsNormed, np.ndarray]:
        """What the way back needs, and y as a tap."""
        width = self.constants.beside(x_PXD, 1 / x_PXD.shape[-1])
        square = np.sum(x_PXD * x_PXD, axis=-1, keepdims=True)
        mean = square * width + self.constants.beside(x_PXD, self.eps)

        def mean_size() -> np.ndarray:
            exact_sum = products(square, np.sum(x_PXD**4, axis=-1, keepdims=True), x_PXD.shape[-1])
            return together(exact_sum * width, rounded(mean, mean))  # the product by 1 / D; eps added

        rate = 1 / np.sqrt(tape.near(f"{self.name}.mean", mean, mean_size))
        rate = tape.near(f"{self.name}.rate", rate, lambda: rounded(rate, rate))  # root, reciprocal
        y = x_PXD * rate * self.weight_D
        return RmsNormed(norm=self, x_PXD=x_PXD, rate_PX1=rate), tape.tap(self.name, y, lambda: once(rounded(y, y), y))


@dataclass(frozen=True, kw_only=True)
class RmsNormed:
    """An RMSNorm's way back."""

    norm: RmsNorm
    x_PXD: np.ndarray
    rate_PX1: np.ndarray

    def backward(self, tape: Tape, into: str, fold: Fold = same) -> None:
        """x_bar = rate (w - xhat mean(w xhat)), with xhat = x rate and w = weight y_bar; `fold` gives it the shape of what it goes to."""
        w = tape.bar(self.norm.name) * self.norm.weight_D
        xhat = self.x_PXD * self.rate_PX1
        inner = np.sum(w * xhat, axis=-1, keepdims=True)

        def inner_size() -> np.ndarray:
            return products(inner, np.sum(np.square(w * xhat), axis=-1, keepdims=True), w.shape[-1])

        width = self.norm.constants.beside(w, 1 / w.shape[-1])
        mean = tape.near(f"bar.{self.norm.name}.inner", inner, inner_size) * width
        direct, through = self.rate_PX1 * w, self.rate_PX1 * xhat * mean
        # xhat, the mean and two products; in two shares, since x stands twice in x^2 and a stack may add what comes back by each
        tape.flow_together(
            into, (fold(direct), lambda: fold(rounded(direct, direct))),
            (fold(-through / 2), lambda: fold(rounded(through, through, through, through))), (fold(-through / 2), none),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias (Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 3)."""

    name: str
    weight_D: np.ndarray
    bias_D: np.ndarray
    eps: float
    constants: Constants

    def forward(self, tape: Tape, x_PXD: np.ndarray) -> tuple[LayerNormed, np.ndarray]:
        """What the way back needs, and y as a tap."""
        terms, width = x_PXD.shape[-1], self.constants.beside(x_PXD, 1 / x_PXD.shape[-1])
        total = np.sum(x_PXD, axis=-1, keepdims=True)
        mean = total * width

        def mean_size() -> np.ndarray:
            return together(summed(total, np.sum(x_PXD * x_PXD, axis=-1, keepdims=True), terms) * width, rounded(mean))

        d = x_PXD - tape.near(f"{self.name}.mean", mean, mean_size)
        d_PXD = tape.near(f"{self.name}.centred", d, lambda: rounded(d))
        square = np.sum(d_PXD * d_PXD, axis=-1, keepdims=True)
        variance = square * width + self.constants.beside(x_PXD, self.eps)

        def variance_size() -> np.ndarray:
            exact_sum = products(square, np.sum(d_PXD**4, axis=-1, keepdims=True), terms)
            return together(exact_sum * width, rounded(variance, variance))  # the product by 1 / D; eps added

        rate = 1 / np.sqrt(tape.near(f"{self.name}.variance", variance, variance_size))
        rate = tape.near(f"{self.name}.rate", rate, lambda: rounded(rate, rate))  # root, reciprocal
        scaled = d_PXD * rate * self.weight_D
        y = scaled + self.bias_D
        return LayerNormed(norm=self, d_PXD=d_PXD, rate_PX1=rate), tape.tap(self.name, y, lambda: once(rounded(scaled, scaled, y), y))


@dataclass(frozen=True, kw_only=True)
class LayerNormed:
    """A LayerNorm's way back."""

    norm: LayerNorm
    d_PXD: np.ndarray
    rate_PX1: np.ndarray

    def backward(self, tape: Tape, into: str, fold: Fold = same) -> None:
        """x_bar = rate (w - mean(w) - xhat mean(w xhat)), with xhat = (x - mean(x)) rate and w = weight y_bar."""
        w = tape.bar(self.norm.name) * self.norm.weight_D
        width, xhat = self.norm.constants.beside(w, 1 / w.shape[-1]), self.d_PXD * self.rate_PX1
        inner = np.sum(w * xhat, axis=-1, keepdims=True)

        def inner_size() -> np.ndarray:
            return products(inner, np.sum(np.square(w * xhat), axis=-1, keepdims=True), w.shape[-1])

        mean = tape.near(f"bar.{self.norm.name}.inner", inner, inner_size) * width
        direct, through = self.rate_PX1 * w, self.rate_PX1 * xhat * mean
        shift = np.sum(direct, axis=-1, keepdims=True)

        def shift_size() -> np.ndarray:
            # what comes back by the product, or by all of d: their sums over D, of terms that were rounded before
            squares = np.sum(np.square(direct) + np.square(through), axis=-1, keepdims=True)
            return together(products(shift, squares, w.shape[-1]), rounded(shift))

        shift = tape.near(f"bar.{self.norm.name}.shift", shift, shift_size) * width
        tape.flow_together(
            into, (fold(direct), lambda: fold(rounded(direct, direct))),
            (fold(-through / 2), lambda: fold(rounded(through, through, through, through))), (fold(-through / 2), none),
            (fold(np.broadcast_to(-shift, direct.shape)), none),
        )  # fmt: skip
