"""Gradient clipping and AdamW in float64 as operations that show their roundings to a Noise: what follows a graph's gradients in a step.

The formulas are those of clip_gradients.py and adamw.py beside it, which hold single operations to hard bounds; here they stand
after a whole graph, so that its errors go through them (docs/theory.md, section Trajectories).

Legend: P runs, X the axes of one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parity.reference.clip_gradients import SMALL
from parity.reference.rounding import Noise, Size, constant, none, products, rounded, together

Matrices = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a step takes beside tensors. host_errs: the work is in float64, so that the host's own float64 numbers err as it does."""

    lr: float
    max_norm: float
    weight_decay: float
    host_errs: bool
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


def clipped(gradients: Matrices, max_norm: float, noise: Noise) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The norm [P] over all gradients [P, X], as that of the matrices' norms, and each times min(1, max_norm / (norm + 1e-6)).

    Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, algorithm 1; the 1e-6 as PyTorch documents it. Where that is 1, nothing is rounded.
    """
    roots = np.stack([_norm(noise, f"norm/{name}", gradient.reshape(len(gradient), -1)) for name, gradient in gradients.items()], axis=1)
    norm_P = _norm(noise, "norm", roots)
    ratio = max_norm / (norm_P + SMALL)
    ratio = noise("clip/ratio", ratio, lambda: rounded(ratio, ratio, 2 * noise.ulp * ratio))  # a sum, a reciprocal, a product
    scale_P = np.minimum(ratio, 1.0)
    return norm_P, {name: _scaled(noise, f"clip/{name}", gradient, scale_P) for name, gradient in gradients.items()}


def _norm(noise: Noise, site: str, values_PN: np.ndarray) -> np.ndarray:
    squares = values_PN * values_PN
    total = squares.sum(axis=1)
    total = noise(f"{site}/squares", total, lambda: products(total, np.sum(squares * squares, axis=1), values_PN.shape[1]))
    root = np.sqrt(total)
    return noise(f"{site}/root", root, lambda: rounded(2 * noise.ulp * root))


def _scaled(noise: Noise, site: str, gradient: np.ndarray, scale_P: np.ndarray) -> np.ndarray:
    scale = _over(scale_P, gradient)
    result = gradient * scale
    return noise(site, result, lambda: np.where(scale < 1, rounded(result), 0.0))


class AdamW:
    """One step's AdamW, matrix by matrix (Loshchilov & Hutter 2019, arXiv:1711.05101; bias correction: Kingma & Ba 2015, arXiv:1412.6980).

    What is the same for all elements is drawn once a run: in float64 with the host's own errors, in float32 with a cast's.
    """

    def __init__(self, settings: Settings, updates: int, noise: Noise) -> None:
        self._settings, self._noise = settings, noise
        n, lr = updates + 1, settings.lr
        self._kept = {"m": self._cast("beta1", settings.beta1), "v": self._cast("beta2", settings.beta2)}
        self._taken = {"m": self._cast("1 - beta1", 1 - settings.beta1), "v": self._cast("1 - beta2", 1 - settings.beta2)}
        self._eps_P = self._cast("eps", settings.eps)
        shrink = lr * settings.weight_decay
        self._decay_P = self._number("decay", np.array([1 - shrink]), _errors_of(shrink, 1 - shrink) if shrink else none)
        first_P, second_P = (self._correction(name, beta, n) for name, beta in (("first", settings.beta1), ("second", settings.beta2)))
        self._rate_P = self._number("rate", lr / first_P, lambda: rounded(lr / first_P))
        self._root_P = self._number("root", np.sqrt(second_P), lambda: rounded(np.sqrt(second_P)))

    def step(self, name: str, weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
        """adapter, m and v [P, X] of one matrix after the step, of what it was before, [X], and its clipped gradient [P, X].

        The decay is taken of the weight first, eps stands outside the root.
        """
        noise = self._noise
        decay = _over(self._decay_P, gradient)
        decayed = weight * decay
        decayed = noise(f"adamw/{name}/decayed", decayed, lambda: np.where(decay != 1, rounded(decayed), 0.0))
        square = gradient * gradient
        square = noise(f"adamw/{name}/square", square, lambda: rounded(square))
        m_next, v_next = (self._average(f"adamw/{name}", part, old, new) for part, old, new in (("m", m, gradient), ("v", v, square)))
        root = np.sqrt(v_next)
        divisor = root / _over(self._root_P, root) + _over(self._eps_P, root)
        # the root as declared; a reciprocal and a product, or the quotient before the root; the sum with eps
        divisor = noise(
            f"adamw/{name}/divisor", divisor, lambda: rounded(2 * noise.ulp * divisor, 2 * noise.ulp * divisor, divisor, divisor)
        )
        update = _over(self._rate_P, root) * (m_next / divisor)
        # a reciprocal, its product with m, and with the rate, or with the learning rate after a quotient by the correction
        update = noise(f"adamw/{name}/update", update, lambda: rounded(2 * noise.ulp * update, update, update, update))
        after = decayed - update
        after = noise(f"adamw/{name}/weight", after, lambda: np.where(update != 0, rounded(after), 0.0))
        return {"adapter": after, "m": m_next, "v": v_next}

    def _average(self, site: str, part: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """beta old + (1 - beta) new, or old + (1 - beta) (new - old): the one that rounds more counts."""
        kept, taken = _over(self._kept[part], new), _over(self._taken[part], new)
        result = kept * old + taken * new

        def size() -> np.ndarray:
            difference = taken * (new - old)
            larger: np.ndarray = np.maximum(rounded(kept * old, taken * new, taken * new, result), rounded(difference, difference, result))
            return larger

        return self._noise(f"{site}/{part}", result, size)

    def _correction(self, name: str, beta: float, n: int) -> np.ndarray:
        """1 - beta^n, [P]: a library's power is right to one ulp, and beta^1 is beta."""
        power = beta**n
        return self._number(name, np.array([1 - power]), _errors_of(2 * power if n > 1 else 0.0, 1 - power), casts=False)

    def _cast(self, name: str, value: float) -> np.ndarray:
        """A number that float64 holds as it is."""
        return self._number(name, np.array([value]), none)

    def _number(self, name: str, value_P: np.ndarray, size: Size, *, casts: bool = True) -> np.ndarray:
        """A number of the host's: in float64 it errs as the size says; in float32 it is exact, and cast where it meets a tensor."""
        if self._settings.host_errs:
            return self._noise(f"adamw/{name}", value_P, size)
        return self._noise(f"adamw/{name}", value_P, lambda: constant(float(value_P[0])) if casts else none())


def _errors_of(*results: float) -> Size:
    return lambda: together(*(rounded(np.array([result])) for result in results))


def _over(number_P: np.ndarray, array: np.ndarray) -> np.ndarray:
    """A number a run beside an array [P, X]."""
    placed: np.ndarray = number_P.reshape(-1, *[1] * (array.ndim - 1))
    return placed
