"""Causal grouped-query attention in float64, from q, k and v to the context, and its vector-Jacobian product.

    context = softmax(q k^T / sqrt(E)) v               Vaswani et al. 2017, arXiv:1706.03762, eq. 1
    head h looks at key head h // (H / K)              Ainslie et al. 2023, arXiv:2305.13245, section 2.2

Legend: P runs, B sequences, T tokens, S tokens that are looked at (= T), H heads, K key heads, G = H / K, E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.reference.llama_operations import Constants, Softmax, rope, rope_backward
from parity.reference.rounding import products, rounded, together
from parity.reference.tape import Tape


def heads(x_PBTQ: np.ndarray, count: int) -> np.ndarray:
    """[P, B, T, count E] -> [P, B, count, T, E]."""
    return x_PBTQ.reshape(*x_PBTQ.shape[:3], count, -1).swapaxes(2, 3)


def side_by_side(x_PBHTE: np.ndarray) -> np.ndarray:
    """The inverse of `heads`."""
    x_PBTHE = x_PBHTE.swapaxes(2, 3)
    return x_PBTHE.reshape(*x_PBTHE.shape[:3], -1)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the way back needs; tables [P, 1, 1, T, E]."""

    key_heads: int
    cos: np.ndarray
    sin: np.ndarray
    q_PBHTE: np.ndarray
    k_PBKTE: np.ndarray
    v_PBKTE: np.ndarray
    softmax: Softmax
    weights_PBHTS: np.ndarray
    root: np.ndarray

    @classmethod
    def forward(
        cls, tape: Tape, qkv: tuple[np.ndarray, np.ndarray, np.ndarray], tables: tuple[np.ndarray, np.ndarray],
        key_heads: int, constants: Constants,
    ) -> tuple[Attention, np.ndarray]:  # fmt: skip
        """The context as a tap, from q [P, B, T, Q], k and v [P, B, T, N] and the tables cos and sin [P, T, E]."""
        cos, sin = (table[:, None, None] for table in tables)
        query_heads = key_heads * (qkv[0].shape[-1] // qkv[1].shape[-1])
        q_PBHTE = tape.tap("q_rope", *rope(heads(qkv[0], query_heads), cos, sin))
        k_PBKTE = tape.tap("k_rope", *rope(heads(qkv[1], key_heads), cos, sin))
        v_PBKTE = heads(qkv[2], key_heads)
        root = constants.inverse_root[..., None]
        scores = root * _grouped(q_PBHTE, k_PBKTE.swapaxes(-1, -2))

        def scores_size() -> np.ndarray:
            squares = _grouped(q_PBHTE**2, k_PBKTE.swapaxes(-1, -2) ** 2)
            return together(root * products(scores / root, squares, q_PBHTE.shape[-1]), rounded(scores))

        scores_PBHTS = tape.tap("scores", scores, scores_size)
        seen_TS = np.tri(scores.shape[-1], dtype=bool)
        softmax, weights_PBHTS = Softmax.forward(tape, "weights", scores_PBHTS, seen_TS)
        context_PBHTE = _grouped(weights_PBHTS, v_PBKTE)
        context = tape.tap(
            "context", side_by_side(context_PBHTE), lambda: side_by_side(_context_size(context_PBHTE, weights_PBHTS, v_PBKTE))
        )
        saved = cls(
            key_heads=key_heads, cos=cos, sin=sin, q_PBHTE=q_PBHTE, k_PBKTE=k_PBKTE, v_PBKTE=v_PBKTE, softmax=softmax,
            weights_PBHTS=weights_PBHTS, root=root,
        )  # fmt: skip
        return saved, context

    def backward(self, tape: Tape) -> None:
        """weights_bar = context_bar v^T; v_bar = weights^T context_bar; q_bar = scores_bar k / sqrt(E), and k_bar of q."""
        query_heads = self.q_PBHTE.shape[2]
        context_bar = heads(tape.bar("context"), query_heads)
        weights_bar = _grouped(context_bar, self.v_PBKTE.swapaxes(-1, -2))

        def weights_bar_size() -> np.ndarray:
            return products(weights_bar, _grouped(context_bar**2, self.v_PBKTE.swapaxes(-1, -2) ** 2), context_bar.shape[-1])

        tape.flow("weights", weights_bar, weights_bar_size)
        v_bar = self._over_group(self.weights_PBHTS, context_bar)
        tape.flow("v_proj", side_by_side(v_bar), lambda: side_by_side(self._over_group_size(v_bar, self.weights_PBHTS, context_bar)))
        self.softmax.backward(tape, tape.bar("weights"), "scores")

        scores_bar = tape.bar("scores")
        q_bar = _grouped(scores_bar, self.k_PBKTE)
        k_bar = self._over_group(scores_bar, self.q_PBHTE)
        tape.flow("q_rope", self.root * q_bar, lambda: self._scaled(q_bar, _context_size(q_bar, scores_bar, self.k_PBKTE)))
        tape.flow("k_rope", self.root * k_bar, lambda: self._scaled(k_bar, self._over_group_size(k_bar, scores_bar, self.q_PBHTE)))
        self._rope_backward(tape, "q_rope", "q_proj")
        self._rope_backward(tape, "k_rope", "k_proj")

    def _rope_backward(self, tape: Tape, name: str, into: str) -> None:
        bar, size = rope_backward(tape.bar(name), self.cos, self.sin)
        tape.flow(into, side_by_side(bar), lambda: side_by_side(size()))

    def _scaled(self, value: np.ndarray, size: np.ndarray) -> np.ndarray:
        return together(self.root * size, rounded(self.root * value))

    def _over_group(self, left_PBHTS: np.ndarray, right_PBHTE: np.ndarray) -> np.ndarray:
        """left^T right, summed over the heads that share a key head: [P, B, K, S, E]."""
        left, right = _stack_group(left_PBHTS, self.key_heads), _stack_group(right_PBHTE, self.key_heads)
        total: np.ndarray = left.swapaxes(-1, -2) @ right
        return total

    def _over_group_size(self, total: np.ndarray, left_PBHTS: np.ndarray, right_PBHTE: np.ndarray) -> np.ndarray:
        terms = np.count_nonzero(_stack_group(left_PBHTS, self.key_heads), axis=-2)[..., None]
        return products(total, self._over_group(left_PBHTS**2, right_PBHTE**2), terms)


def _grouped(left_PBHTX: np.ndarray, right_PBKXY: np.ndarray) -> np.ndarray:
    """left right, each head with its key head's: [P, B, H, T, Y]."""
    key_heads = right_PBKXY.shape[2]
    left_PBKGTX = left_PBHTX.reshape(*left_PBHTX.shape[:2], key_heads, -1, *left_PBHTX.shape[3:])
    total: np.ndarray = left_PBKGTX @ right_PBKXY[:, :, :, None]
    return total.reshape(*total.shape[:2], -1, *total.shape[4:])


def _context_size(total: np.ndarray, left_PBHTS: np.ndarray, right_PBKSE: np.ndarray) -> np.ndarray:
    """What is masked is exactly zero, and adds no term."""
    terms = np.count_nonzero(left_PBHTS, axis=-1)[..., None]
    return products(total, _grouped(left_PBHTS**2, right_PBKSE**2), terms)


def _stack_group(x_PBHTE: np.ndarray, key_heads: int) -> np.ndarray:
    """[P, B, H, T, E] -> [P, B, K, G T, E]."""
    return x_PBHTE.reshape(*x_PBHTE.shape[:2], key_heads, -1, x_PBHTE.shape[-1])
