"""The operations of a Llama-type graph in float64, each beside its vector-Jacobian product, written from the formula.

Legend: P runs, B sequences, T tokens, D hidden_size (or any last axis), I in_features, O out_features, E head_dim, X any axes.
A name that ends in _bar is the cotangent of what it is named for. Each operation tells a Tape how large its roundings are;
without noise nobody asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from parity.reference.rounding import Noise, Size, constant, none, products, rounded, summed, together
from parity.reference.tape import Tape


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Numbers that the whole graph shares, so that a cast's error is the same wherever they are used; each [P, 1, 1, 1].

    scaling: LoRA's s; inverse_root: 1 / sqrt(head_dim); eps: rms_norm_eps; inverse_width: 1 / hidden_size.
    """

    scaling: np.ndarray
    inverse_root: np.ndarray
    eps: np.ndarray
    inverse_width: np.ndarray

    @classmethod
    def of(cls, noise: Noise, *, scaling: float, head_dim: int, eps: float, width: int) -> Constants:
        """The constants as each run has them: cast once."""

        def cast(name: str, value: float) -> np.ndarray:
            return noise(f"constant/{name}", np.full((1, 1, 1, 1), value), lambda: constant(value))

        return cls(
            scaling=cast("scaling", scaling),
            inverse_root=cast("inverse_root", head_dim**-0.5),
            eps=cast("eps", eps),
            inverse_width=cast("inverse_width", 1 / width),
        )


def product(x_PBTI: np.ndarray, weight_IO: np.ndarray) -> np.ndarray:
    """x weight over the last axis: one matrix product for the rows of all runs."""
    y: np.ndarray = x_PBTI.reshape(-1, x_PBTI.shape[-1]) @ weight_IO
    return y.reshape(*x_PBTI.shape[:-1], weight_IO.shape[1])


def product_size(y_PBTO: np.ndarray, x_PBTI: np.ndarray, weight_IO: np.ndarray) -> np.ndarray:
    """The size of the error of y = x weight."""
    return products(y_PBTO, product(x_PBTI * x_PBTI, weight_IO * weight_IO), weight_IO.shape[0])


def outer(y_bar_PBTO: np.ndarray, x_PBTI: np.ndarray) -> np.ndarray:
    """The gradient of a matrix W in y = x W^T, [P, O, I]: the sum over all tokens of y_bar x^T."""
    y_bar, x = (array.reshape(array.shape[0], -1, array.shape[-1]) for array in (y_bar_PBTO, x_PBTI))
    gradient: np.ndarray = y_bar.swapaxes(-1, -2) @ x
    return gradient


def outer_size(gradient_POI: np.ndarray, y_bar_PBTO: np.ndarray, x_PBTI: np.ndarray) -> np.ndarray:
    """The size of the error of `outer`."""
    return products(gradient_POI, outer(y_bar_PBTO * y_bar_PBTO, x_PBTI * x_PBTI), x_PBTI.shape[1] * x_PBTI.shape[2])


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; eps under the root as Llama has it)."""

    name: str
    weight_D: np.ndarray
    x_PBTD: np.ndarray
    rate_PBT1: np.ndarray

    @classmethod
    def forward(cls, tape: Tape, name: str, x: np.ndarray, weight_D: np.ndarray, constants: Constants) -> tuple[RmsNorm, np.ndarray]:
        """What the way back needs, and y as a tap."""
        square = np.sum(x * x, axis=-1, keepdims=True)
        mean = square * constants.inverse_width + constants.eps

        def mean_size() -> np.ndarray:
            exact_sum = products(square, np.sum(x**4, axis=-1, keepdims=True), x.shape[-1])
            return together(exact_sum * constants.inverse_width, rounded(mean, mean))  # the product by 1 / D; eps added

        rate = 1 / np.sqrt(tape.near(f"{name}.mean", mean, mean_size))
        rate = tape.near(f"{name}.rate", rate, lambda: rounded(rate, rate))  # root, reciprocal
        y = x * rate * weight_D
        return cls(name=name, weight_D=weight_D, x_PBTD=x, rate_PBT1=rate), tape.tap(name, y, lambda: rounded(y, y))

    def backward(self, tape: Tape, into: str, constants: Constants) -> None:
        """x_bar = rate (w - xhat mean(w xhat)), with xhat = x rate and w = weight y_bar."""
        w = tape.bar(self.name) * self.weight_D
        xhat = self.x_PBTD * self.rate_PBT1
        inner = np.sum(w * xhat, axis=-1, keepdims=True)

        def inner_size() -> np.ndarray:
            return products(inner, np.sum(np.square(w * xhat), axis=-1, keepdims=True), w.shape[-1])

        mean = tape.near(f"bar.{self.name}.inner", inner, inner_size) * constants.inverse_width
        direct, through = self.rate_PBT1 * w, self.rate_PBT1 * xhat * mean
        tape.flow(into, direct, lambda: rounded(direct, direct))
        # xhat, the mean and two products; in two shares, since x stands twice in x^2 and a stack may add what comes back by each
        tape.flow(into, -through / 2, lambda: rounded(through, through, through, through))
        tape.flow(into, -through / 2)


def rotate_half(x_XE: np.ndarray) -> np.ndarray:
    """(a, b) -> (-b, a), the halves of the last axis."""
    a, b = np.split(x_XE, 2, axis=-1)
    return np.concatenate([-b, a], axis=-1)


def rope(x_XTE: np.ndarray, cos_TE: np.ndarray, sin_TE: np.ndarray) -> tuple[np.ndarray, Size]:
    """x cos + rotate_half(x) sin (Su et al. 2021, arXiv:2104.09864, eq. 34, on halves as Llama's weights are laid out), and its size."""
    first, second = x_XTE * cos_TE, rotate_half(x_XTE) * sin_TE
    y = first + second
    return y, lambda: rounded(first, second, y)


def rope_backward(y_bar_XTE: np.ndarray, cos_TE: np.ndarray, sin_TE: np.ndarray) -> tuple[np.ndarray, Size]:
    """x_bar = y_bar cos + rotate_half^T (y_bar sin), rotate_half^T = -rotate_half, and its size."""
    first, second = y_bar_XTE * cos_TE, rotate_half(y_bar_XTE * sin_TE)
    x_bar = first - second
    return x_bar, lambda: rounded(first, second, x_bar)


@dataclass(frozen=True, kw_only=True)
class Silu:
    """silu(x) = x sigma(x), sigma(x) = 1 / (1 + exp(-x)) (Elfwing et al. 2017, arXiv:1702.03118, eq. 5)."""

    x: np.ndarray
    sigma: np.ndarray

    @classmethod
    def forward(cls, tape: Tape, name: str, x: np.ndarray) -> tuple[Silu, np.ndarray]:
        """What the way back needs, and silu(x) as a tap."""
        silu = cls(x=x, sigma=expit(x))
        y = x * silu.sigma
        return silu, tape.tap(name, y, lambda: together(np.abs(x) * silu._sigma_size(tape.noise.exp_ulp), rounded(y)))

    def backward(self, tape: Tape, y_bar: np.ndarray, into: str) -> None:
        """x_bar = y_bar silu'(x), silu'(x) = sigma (1 + x (1 - sigma))."""
        x, sigma = self.x, self.sigma
        slope = sigma * (1 + x * (1 - sigma))
        x_bar = y_bar * slope

        def size() -> np.ndarray:
            by_sigma = (1 + x * (1 - 2 * sigma)) * self._sigma_size(tape.noise.exp_ulp)
            x_rest = sigma * x * (1 - sigma)
            slope_size = together(by_sigma, rounded(x_rest, x_rest, slope, slope))  # 1 - sigma, x times it; 1 + that, sigma times it
            return together(y_bar * slope_size, rounded(x_bar))

        tape.flow(into, x_bar, size)

    def _sigma_size(self, exp_ulp: float) -> np.ndarray:
        """exp's own error, of which sigma feels the share 1 - sigma; an addition and a division."""
        own = 2 * exp_ulp * (1 - self.sigma) * self.sigma / np.sqrt(3)  # one ulp is at most 2 u
        return together(own, rounded(self.sigma, self.sigma))


def exp_size(e: np.ndarray, argument: np.ndarray, exp_ulp: float) -> np.ndarray:
    """The size of the error of e = exp(argument): the argument's rounding, and exp's own error (one ulp is at most 2 u)."""
    return together(rounded(e * argument), 2 * exp_ulp * e / np.sqrt(3))


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """exp(z - max z) / sum exp(z - max z) over what is seen, exactly 0 elsewhere (Goodfellow et al. 2016, eq. 4.1)."""

    weights_PBHTS: np.ndarray
    several_T1: np.ndarray

    @classmethod
    def forward(cls, tape: Tape, name: str, scores_PBHTS: np.ndarray, seen_TS: np.ndarray) -> tuple[Softmax, np.ndarray]:
        """What the way back needs (the weights as computed, whatever overrides them), and the weights as a tap."""
        shifted = np.where(seen_TS, scores_PBHTS, -np.inf)
        shifted = shifted - np.max(shifted, axis=-1, keepdims=True)
        exact = np.exp(shifted)
        e = tape.near(f"{name}.exp", exact, lambda: exp_size(exact, np.where(seen_TS, shifted, 0.0), tape.noise.exp_ulp))
        total, count = np.sum(e, axis=-1, keepdims=True), np.sum(seen_TS, axis=-1)[:, None]
        total = tape.near(f"{name}.sum", total, lambda: summed(total, np.sum(e * e, axis=-1, keepdims=True), count))
        weights = e / total
        # a reciprocal and a product; a single weight is e / e, which is 1 however e erred
        weights = tape.near(f"{name}.quotient", weights, lambda: np.where(count > 1, rounded(weights, weights), 0.0))
        return cls(weights_PBHTS=weights, several_T1=count > 1), tape.tap(name, weights, none)

    def backward(self, tape: Tape, weights_bar_PBHTS: np.ndarray, into: str) -> None:
        """z_bar = p (p_bar - sum p p_bar), exactly 0 for what is not seen, and where a single one is."""
        p, p_bar = self.weights_PBHTS, weights_bar_PBHTS
        inner = np.sum(p * p_bar, axis=-1, keepdims=True)

        def inner_size() -> np.ndarray:
            squares = np.sum(np.square(p * p_bar), axis=-1, keepdims=True)
            return np.where(self.several_T1, products(inner, squares, np.count_nonzero(p, axis=-1)[..., None]), 0.0)

        noisy_inner = tape.near(f"{into}.inner", inner, inner_size)
        z_bar = p * (p_bar - noisy_inner)
        # p p_bar and p sum(p p_bar) may be rounded before they are subtracted; the difference; its product by p
        tape.flow(into, z_bar, lambda: np.where(self.several_T1, rounded(p * p_bar, p * inner, z_bar, z_bar), 0.0))
