"""The activations of a decoder's graph in float64, each beside its vector-Jacobian product.

Legend: any shape, element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf, expit

from parity.reference.graph_operations import Constants, exp_size
from parity.reference.rounding import Mixed, once, rounded, together
from parity.reference.tape import Tape


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
        return silu, tape.tap(name, y, lambda: once(together(np.abs(x) * silu._sigma_size(tape.noise.ulp), rounded(y)), y))

    def backward(self, tape: Tape, y_bar: np.ndarray, into: str) -> None:
        """x_bar = y_bar silu'(x), silu'(x) = sigma (1 + x (1 - sigma))."""
        x, sigma = self.x, self.sigma
        slope = sigma * (1 + x * (1 - sigma))
        x_bar = y_bar * slope

        def size() -> Mixed:
            by_sigma = (1 + x * (1 - 2 * sigma)) * self._sigma_size(tape.noise.ulp)
            x_rest = sigma * x * (1 - sigma)
            slope_size = together(by_sigma, rounded(x_rest, x_rest, slope, slope))  # 1 - sigma, x times it; 1 + that, sigma times it
            return once(together(y_bar * slope_size, rounded(x_bar)), x_bar)

        tape.flow(into, x_bar, size)

    def _sigma_size(self, ulp: float) -> np.ndarray:
        """exp's own error, of which sigma feels the share 1 - sigma; an addition and a division."""
        own = 2 * ulp * (1 - self.sigma) * self.sigma / np.sqrt(3)  # one ulp is at most 2 u
        return together(own, rounded(self.sigma, self.sigma))


@dataclass(frozen=True, kw_only=True)
class Gelu:
    """x / 2 (1 + h(z(x))) (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2), with

    gelu        h = erf, z = x / sqrt(2)
    gelu_new    h = tanh, z = sqrt(2 / pi) (x + 0.044715 x^3)
    """

    x: np.ndarray
    h: np.ndarray
    slope: np.ndarray
    h_size: Callable[[float], np.ndarray]
    slope_size: Callable[[float], np.ndarray]

    @classmethod
    def forward(cls, tape: Tape, name: str, x: np.ndarray, function: str, constants: Constants) -> tuple[Gelu, np.ndarray]:
        """What the way back needs, and gelu(x) as a tap."""
        gelu = {"gelu": cls._by_erf, "gelu_new": cls._by_tanh}[function](x, constants)
        y = x / 2 * (1 + gelu.h)
        return gelu, tape.tap(
            name, y, lambda: once(together(x / 2 * gelu.h_size(tape.noise.ulp), rounded(x / 2 * (1 + gelu.h), y)), y)
        )  # fmt: skip

    def backward(self, tape: Tape, y_bar: np.ndarray, into: str) -> None:
        """x_bar = y_bar ((1 + h) / 2 + x / 2 h'), h' the derivative by x."""
        flat, steep = (1 + self.h) / 2, self.x / 2 * self.slope
        x_bar = y_bar * (flat + steep)

        def size() -> Mixed:
            ulp = tape.noise.ulp
            of_sum = together(self.h_size(ulp) / 2, self.x / 2 * self.slope_size(ulp), rounded(flat, flat, steep, steep, flat + steep))
            return once(together(y_bar * of_sum, rounded(x_bar)), x_bar)

        tape.flow(into, x_bar, size)

    @classmethod
    def _by_erf(cls, x: np.ndarray, constants: Constants) -> Gelu:
        z = x * constants.beside(x, 0.5**0.5)
        h, e = erf(z), np.exp(-z * z)
        slope = e * constants.beside(x, (2 / np.pi) ** 0.5)  # 2 / sqrt(pi) exp(-z^2) / sqrt(2)

        def h_size(ulp: float) -> np.ndarray:
            return together(2 * ulp * h / np.sqrt(3), rounded(2 / np.sqrt(np.pi) * e * z))

        def slope_size(ulp: float) -> np.ndarray:
            # exp's argument is rounded as z is, twice over in its square, and as a product; two factors
            return together(slope / np.where(e > 0, e, 1.0) * exp_size(e, z * z, ulp), rounded(2 * z * z * slope, slope, slope))

        return cls(x=x, h=h, slope=slope, h_size=h_size, slope_size=slope_size)

    @classmethod
    def _by_tanh(cls, x: np.ndarray, constants: Constants) -> Gelu:
        root, cubic = (constants.beside(x, value) for value in ((2 / np.pi) ** 0.5, 0.044715))
        z = root * (x + cubic * x**3)
        h = np.tanh(z)
        inner = root * (1 + 3 * cubic * x * x)
        falling = 1 - h * h

        def h_size(ulp: float) -> np.ndarray:
            cube = root * cubic * x**3
            return together(2 * ulp * h / np.sqrt(3), falling * rounded(cube, cube, cube, z, z))

        def slope_size(ulp: float) -> np.ndarray:
            by_h = together(2 * h * h_size(ulp), rounded(h * h, falling))
            cube = 3 * root * cubic * x * x
            return together(by_h * inner, falling * rounded(cube, cube, cube, inner, inner), rounded(falling * inner))

        return cls(x=x, h=h, slope=falling * inner, h_size=h_size, slope_size=slope_size)
