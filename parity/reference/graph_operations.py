"""The operations of a decoder's graph in float64, each beside its vector-Jacobian product, written from the formula.

Norms are in graph_norm.py, activations in graph_activation.py.

Legend: P runs, B sequences, T tokens, I in_features, O out_features, E head_dim, X any axes.
A name that ends in _bar is the cotangent of what it is named for. Each operation tells a Tape how large its roundings are;
without noise nobody asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.reference.rounding import Mixed, Noise, Size, before, constant, each, once, products, rounded, summed, together
from parity.reference.tape import Tape


class Constants:
    """Numbers that a graph casts once, such as eps, so that a cast's error is the same wherever the number is used."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._cast: dict[float, np.ndarray] = {}

    def beside(self, array: np.ndarray, value: float) -> np.ndarray:
        """The constant as each run has it, [P, 1, ...], of as many axes as the array that it meets."""
        if value not in self._cast:
            self._cast[value] = self._noise(f"constant/{value!r}", np.full((1, 1), value), lambda: constant(value))
        return self._cast[value].reshape(-1, *[1] * (array.ndim - 1))


def product(x_PBTI: np.ndarray, weight_IO: np.ndarray) -> np.ndarray:
    """x weight over the last axis: one matrix product for the rows of all runs; or one each, where a run has its own weight [P, I, O]."""
    y: np.ndarray
    if weight_IO.ndim > 2:
        y = x_PBTI.reshape(len(x_PBTI), -1, x_PBTI.shape[-1]) @ weight_IO
        return y.reshape(len(y), *x_PBTI.shape[1:-1], weight_IO.shape[-1])
    y = x_PBTI.reshape(-1, x_PBTI.shape[-1]) @ weight_IO
    return y.reshape(*x_PBTI.shape[:-1], weight_IO.shape[1])


def product_size(y_PBTO: np.ndarray, x_PBTI: np.ndarray, weight_IO: np.ndarray) -> Mixed:
    """The size of the error of y = x weight."""
    return once(products(y_PBTO, product(x_PBTI * x_PBTI, weight_IO * weight_IO), weight_IO.shape[-2]), y_PBTO)


def outer(y_bar_PBTO: np.ndarray, x_PBTI: np.ndarray) -> np.ndarray:
    """The gradient of a matrix W in y = x W^T, [P, O, I]: the sum over all tokens of y_bar x^T."""
    y_bar, x = (array.reshape(array.shape[0], -1, array.shape[-1]) for array in (y_bar_PBTO, x_PBTI))
    gradient: np.ndarray = y_bar.swapaxes(-1, -2) @ x
    return gradient


def outer_size(gradient_POI: np.ndarray, y_bar_PBTO: np.ndarray, x_PBTI: np.ndarray) -> Mixed:
    """The size of the error of `outer`."""
    squares = outer(y_bar_PBTO * y_bar_PBTO, x_PBTI * x_PBTI)
    return once(products(gradient_POI, squares, x_PBTI.shape[1] * x_PBTI.shape[2]), gradient_POI)


def rotate_half(x_XE: np.ndarray) -> np.ndarray:
    """(a, b) -> (-b, a), the halves of the last axis."""
    a, b = np.split(x_XE, 2, axis=-1)
    return np.concatenate([-b, a], axis=-1)


def rope(x_XTE: np.ndarray, cos_TE: np.ndarray, sin_TE: np.ndarray) -> tuple[np.ndarray, Size]:
    """x cos + rotate_half(x) sin (Su et al. 2021, arXiv:2104.09864, eq. 34, on halves as Llama's weights are laid out), and its size."""
    first, second = x_XTE * cos_TE, rotate_half(x_XTE) * sin_TE
    y = first + second
    return y, lambda: each(first, second, y)


def rope_backward(y_bar_XTE: np.ndarray, cos_TE: np.ndarray, sin_TE: np.ndarray) -> tuple[np.ndarray, Size]:
    """x_bar = y_bar cos + rotate_half^T (y_bar sin), rotate_half^T = -rotate_half, and its size."""
    first, second = y_bar_XTE * cos_TE, rotate_half(y_bar_XTE * sin_TE)
    x_bar = first - second
    return x_bar, lambda: each(first, second, x_bar)


def exp_size(e: np.ndarray, argument: np.ndarray, ulp: float) -> np.ndarray:
    """The size of the error of e = exp(argument): the argument's rounding, and exp's own error (one ulp is at most 2 u)."""
    return together(rounded(e * argument), 2 * ulp * e / np.sqrt(3))


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """exp(z - max z) / sum exp(z - max z) over what is seen, exactly 0 elsewhere (Goodfellow et al. 2016, eq. 4.1).

    A row that sees nothing is all zeros, and gives no gradient.
    """

    weights_PBHTS: np.ndarray
    several: np.ndarray

    @classmethod
    def forward(cls, tape: Tape, name: str, scores_PBHTS: np.ndarray, seen: np.ndarray) -> tuple[Softmax, np.ndarray]:
        """What the way back needs (the weights as computed, whatever overrides them), and the weights as a tap.

        seen: bool, [T, S] or [B, 1, T, S].
        """
        count = np.sum(seen, axis=-1)[..., None]
        largest = np.max(scores_PBHTS, axis=-1, keepdims=True, where=seen, initial=-np.inf)
        shifted = np.where(seen, scores_PBHTS - np.where(count > 0, largest, 0.0), -np.inf)
        exact = np.exp(shifted)
        e = tape.near(f"{name}.exp", exact, lambda: exp_size(exact, np.where(seen, shifted, 0.0), tape.noise.ulp))
        total = np.sum(e, axis=-1, keepdims=True)
        total = tape.near(f"{name}.sum", total, lambda: summed(total, np.sum(e * e, axis=-1, keepdims=True), count))
        weights = np.divide(e, total, out=np.zeros(np.broadcast_shapes(e.shape, total.shape)), where=count > 0)
        # a reciprocal and a product; a single weight is e / e, which is 1 however e erred
        several = np.where(count > 1, weights, 0.0)
        # what the way back takes may be stored
        weights = tape.near(f"{name}.quotient", weights, lambda: once(rounded(several, several), several))
        return cls(weights_PBHTS=weights, several=count > 1), tape.tap(name, weights, lambda: before(several))

    def backward(self, tape: Tape, weights_bar_PBHTS: np.ndarray, into: str) -> None:
        """z_bar = p (p_bar - sum p p_bar), exactly 0 for what is not seen, and where a single one is."""
        p, p_bar = self.weights_PBHTS, weights_bar_PBHTS
        inner = np.sum(p * p_bar, axis=-1, keepdims=True)

        def inner_size() -> np.ndarray:
            squares = np.sum(np.square(p * p_bar), axis=-1, keepdims=True)
            return np.where(self.several, products(inner, squares, np.count_nonzero(p, axis=-1)[..., None]), 0.0)

        noisy_inner = tape.near(f"{into}.inner", inner, inner_size)
        z_bar = p * (p_bar - noisy_inner)
        tape.flow(into, z_bar, lambda: self._bar_size(p_bar, inner, z_bar))

    def _bar_size(self, p_bar: np.ndarray, inner: np.ndarray, z_bar: np.ndarray) -> Mixed:
        """p p_bar and p sum(p p_bar) may be rounded before they are subtracted; the difference; its product by p.

        Of stored roundings, z_bar's own and those of p, as it stands in the formula twice.
        """
        p = self.weights_PBHTS
        inside = np.where(self.several, rounded(p * p_bar, p * inner, z_bar, z_bar), 0.0)
        through = np.abs(p) * np.sum(np.abs(p * p_bar), axis=-1, keepdims=True)
        most = np.where(self.several, 2 * np.abs(z_bar) + through, 0.0)
        return Mixed(alone=inside, inside=inside, stored=rounded(np.where(self.several, z_bar, 0.0)), most=most, after=3)
