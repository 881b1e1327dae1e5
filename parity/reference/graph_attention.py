"""Causal grouped-query attention in float64, from queries, keys and values to the context, and its vector-Jacobian product.

    context = softmax(scale q k^T) v                   Vaswani et al. 2017, arXiv:1706.03762, eq. 1; scale is 1 / sqrt(E) there
    head h looks at key head h // (H / K)              Ainslie et al. 2023, arXiv:2305.13245, section 2.2
    token t sees s: t - window < s <= t                Jiang et al. 2023, arXiv:2310.06825, section 2 (Mistral 7B)

A token sees those of its own segment alone, and padding sees nothing: its context is 0.

Legend: P runs, B sequences, T tokens, S tokens that are looked at (= T), H heads, K key heads, G = H / K, E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract.data.batches import PADDING
from parity.reference.graph_norm import Fold, same
from parity.reference.graph_operations import Softmax, rope, rope_backward
from parity.reference.rounding import Mixed, Size, once, placed, products, rounded, together
from parity.reference.tape import Tape


def heads(x_PBTQ: np.ndarray, count: int) -> np.ndarray:
    """[P, B, T, count E] -> [P, B, count, T, E]."""
    return x_PBTQ.reshape(*x_PBTQ.shape[:3], count, -1).swapaxes(2, 3)


def side_by_side(x_PBHTE: np.ndarray) -> np.ndarray:
    """The inverse of `heads`."""
    x_PBTHE = x_PBHTE.swapaxes(2, 3)
    return x_PBTHE.reshape(*x_PBTHE.shape[:3], -1)


def visible(tokens: int, window: int | None, segments_BT: np.ndarray | None) -> np.ndarray:
    """Which s a token t sees: [T, S], or [B, 1, T, S] where there are segments."""
    distance_TS = np.arange(tokens)[:, None] - np.arange(tokens)
    seen_TS: np.ndarray = (distance_TS >= 0) & (distance_TS < (tokens if window is None else window))
    if segments_BT is None:
        return seen_TS
    same_BTS = (segments_BT[:, :, None] == segments_BT[:, None]) & (segments_BT != PADDING)[:, :, None]
    seen_B1TS: np.ndarray = (seen_TS & same_BTS)[:, None]
    return seen_B1TS


PROJECTED = ("q_proj", "k_proj")
"""Taps that have their heads side by side; a norm or a rotation takes them apart."""


def fold_of(name: str) -> Fold:
    """How the cotangent of heads becomes that of the tap that they come from."""
    return side_by_side if name in PROJECTED else same


@dataclass(frozen=True, kw_only=True)
class Rope:
    """q or k turned by its positions, and the way back; tables [P, T, E], or [P, B, T, E]."""

    name: str
    cos: np.ndarray
    sin: np.ndarray

    @classmethod
    def forward(cls, tape: Tape, name: str, x_PBHTE: np.ndarray, tables: tuple[np.ndarray, np.ndarray]) -> tuple[Rope, np.ndarray]:
        """What the way back needs, and what is turned as a tap."""
        cos, sin = (table[:, None, None] if table.ndim == 3 else table[:, :, None] for table in tables)
        return cls(name=name, cos=cos, sin=sin), tape.tap(name, *rope(x_PBHTE, cos, sin))

    def backward(self, tape: Tape, into: str) -> None:
        """Sends the cotangent to the tap that was turned."""
        fold = fold_of(into)
        bar, size = rope_backward(tape.bar(self.name), self.cos, self.sin)
        tape.flow(into, fold(bar), lambda: placed(size(), fold))


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the way back needs. names: the taps that q and k are; they have their heads side by side where these are projections."""

    names: tuple[str, str]
    key_heads: int
    q_PBHTE: np.ndarray
    k_PBKTE: np.ndarray
    v_PBKTE: np.ndarray
    softmax: Softmax
    weights_PBHTS: np.ndarray
    scale: np.ndarray

    @classmethod
    def forward(
        cls, tape: Tape, names: tuple[str, str], qkv: tuple[np.ndarray, np.ndarray, np.ndarray], scale: np.ndarray, seen: np.ndarray
    ) -> tuple[Attention, np.ndarray]:
        """The context as a tap, from q [P, B, H, T, E], k and v [P, B, K, T, E], a scale for each run, and what is visible."""
        q_PBHTE, k_PBKTE, v_PBKTE = qkv
        scores = scale * _grouped(q_PBHTE, k_PBKTE.swapaxes(-1, -2))

        def scores_size() -> Mixed:
            squares = _grouped(q_PBHTE**2, k_PBKTE.swapaxes(-1, -2) ** 2)
            inside = scale * products(scores / scale, squares, q_PBHTE.shape[-1])
            alone, stored = together(inside, rounded(scores)), rounded(scores, scores)  # the products, then their product by the scale
            return Mixed(alone=alone, inside=inside, stored=stored, most=2 * np.abs(scores), after=2)

        scores_PBHTS = tape.tap("scores", scores, scores_size)
        softmax, weights_PBHTS = Softmax.forward(tape, "weights", scores_PBHTS, seen)
        context_PBHTE = _grouped(weights_PBHTS, v_PBKTE)

        def context_size() -> np.ndarray | Mixed:
            return placed(once(_context_size(context_PBHTE, weights_PBHTS, v_PBKTE), context_PBHTE), side_by_side)

        context = tape.tap("context", side_by_side(context_PBHTE), context_size)
        saved = cls(
            names=names, key_heads=k_PBKTE.shape[2], q_PBHTE=q_PBHTE, k_PBKTE=k_PBKTE, v_PBKTE=v_PBKTE, softmax=softmax,
            weights_PBHTS=weights_PBHTS, scale=scale,
        )  # fmt: skip
        return saved, context

    def backward(self, tape: Tape) -> None:
        """weights_bar = context_bar v^T; v_bar = weights^T context_bar; q_bar = scale scores_bar k, and k_bar of q."""
        query_heads = self.q_PBHTE.shape[2]
        context_bar = heads(tape.bar("context"), query_heads)
        weights_bar = _grouped(context_bar, self.v_PBKTE.swapaxes(-1, -2))

        def weights_bar_size() -> Mixed:
            squares = _grouped(context_bar**2, self.v_PBKTE.swapaxes(-1, -2) ** 2)
            return once(products(weights_bar, squares, context_bar.shape[-1]), weights_bar)

        tape.flow("weights", weights_bar, weights_bar_size)
        v_bar = self._over_group(self.weights_PBHTS, context_bar)
        tape.flow("v_proj", side_by_side(v_bar), lambda: placed(self._v_bar_size(tape, v_bar, context_bar), side_by_side))
        self.softmax.backward(tape, tape.bar("weights"), "scores")

        scores_bar = tape.bar("scores")
        q_bar = _grouped(scores_bar, self.k_PBKTE)
        k_bar = self._over_group(scores_bar, self.q_PBHTE)
        self._flow(tape, self.names[0], self.scale * q_bar, lambda: self._q_bar_size(tape, q_bar, scores_bar))
        self._flow(tape, self.names[1], self.scale * k_bar, lambda: self._k_bar_size(tape, k_bar, scores_bar))

    def _flow(self, tape: Tape, into: str, bar: np.ndarray, size: Size) -> None:
        fold = fold_of(into)
        tape.flow(into, fold(bar), lambda: placed(size(), fold))

    def _q_bar_size(self, tape: Tape, q_bar: np.ndarray, scores_bar: np.ndarray) -> np.ndarray | Mixed:
        """Stored are the scaled cotangents of the scores, and the sum."""
        inside = self._scaled(q_bar, _context_size(q_bar, scores_bar, self.k_PBKTE))
        if not tape.noise.mixed:
            return inside
        squares, terms = _grouped(scores_bar**2, self.k_PBKTE**2), _grouped(np.abs(scores_bar), np.abs(self.k_PBKTE))
        return self._stored(inside, squares, terms, q_bar, after=2)

    def _k_bar_size(self, tape: Tape, k_bar: np.ndarray, scores_bar: np.ndarray) -> np.ndarray | Mixed:
        """Stored are the scaled cotangents of the scores, each head's sum, and the sum over heads."""
        inside = self._scaled(k_bar, self._over_group_size(k_bar, scores_bar, self.q_PBHTE))
        if not tape.noise.mixed:
            return inside
        squares, terms = self._over_group(scores_bar**2, self.q_PBHTE**2), self._over_group(np.abs(scores_bar), np.abs(self.q_PBHTE))
        by_head = self._by_head(scores_bar, self.q_PBHTE)
        return self._stored(inside, squares + by_head[0], terms + by_head[1], k_bar, after=3)

    def _v_bar_size(self, tape: Tape, v_bar: np.ndarray, context_bar: np.ndarray) -> np.ndarray | Mixed:
        """Stored are each head's sum, and the sum over heads."""
        inside = self._over_group_size(v_bar, self.weights_PBHTS, context_bar)
        if not tape.noise.mixed:
            return inside
        squares, terms = self._by_head(self.weights_PBHTS, context_bar)
        return Mixed(
            alone=inside, inside=inside, stored=together(np.sqrt(squares / 3), rounded(v_bar)), most=terms + np.abs(v_bar), after=2
        )

    def _stored(self, inside: np.ndarray, squares: np.ndarray, terms: np.ndarray, bar: np.ndarray, *, after: int) -> Mixed:
        """squares, terms: of what is rounded before the last sum, and its absolute values, summed; all of it is yet to be scaled."""
        stored = self.scale * together(np.sqrt(squares / 3), rounded(bar))
        return Mixed(alone=inside, inside=inside, stored=stored, most=self.scale * (terms + np.abs(bar)), after=after)

    def _by_head(self, left_PBHTS: np.ndarray, right_PBHTE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """left^T right head by head: the squares and the absolute values, each summed over the heads that share a key head.

        Zero where no heads share one: nothing is summed then.
        """
        if left_PBHTS.shape[2] == self.key_heads:
            return np.zeros(()), np.zeros(())
        each_head = left_PBHTS.swapaxes(-1, -2) @ right_PBHTE
        grouped = each_head.reshape(*each_head.shape[:2], self.key_heads, -1, *each_head.shape[-2:])
        return np.sum(grouped**2, axis=3), np.sum(np.abs(grouped), axis=3)

    def _scaled(self, value: np.ndarray, size: np.ndarray) -> np.ndarray:
        return together(self.scale * size, rounded(self.scale * value))

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
