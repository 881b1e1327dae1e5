"""What stands before the blocks of a decoder's graph and after them, in float64: embedding, RoPE's tables, head and loss.

Legend: P runs, B sequences, T tokens, D hidden_size, V vocab_size, E head_dim, C = E / 2.
"""

from __future__ import annotations

import numpy as np

from contract.model.layouts.rope import RopeLayout, RopeScaling
from contract.worker.graph import IGNORE_INDEX
from parity.reference.graph_norm import LayerNorm, LayerNormed, RmsNorm, RmsNormed
from parity.reference.graph_operations import exp_size, product, product_size
from parity.reference.rounding import Mixed, each, none, once, rounded, summed, together
from parity.reference.tape import Tape


def rope_tables(tape: Tape, layout: RopeLayout, positions: np.ndarray, *, angles_err: bool) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of t f[i], i = 0 .. E / 2 - 1, twice over, for positions t [T] or [B, T]: [P, T, E] or [P, B, T, E], not yet taps.

    f[i] = theta^(-2 i / E) (arXiv:2104.09864, section 3.2.2), changed as `RopeScaling` says. A table is computed in float64 and cast once,
    so in float32 only the cast errs; with `angles_err` (in float64 itself) the power, the angle and the function do too. Every layer, and
    every token at a position, uses the same table, with the same error.
    """
    exponent_C = np.arange(0, layout.head_dim, 2) / layout.head_dim
    power_PC = np.asarray(layout.rope_theta**-exponent_C)[None]

    def power_size() -> np.ndarray:
        if not angles_err:
            return none()
        # the exponent's rounding, the power within one ulp, a reciprocal
        return together(rounded(power_PC * exponent_C * np.log(layout.rope_theta)), rounded(2 * power_PC), rounded(power_PC))

    frequency_PC = tape.near("rope.frequency", power_PC, power_size)
    if layout.rope_scaling is not None:
        frequency_PC = _scaled(tape, frequency_PC, layout.rope_scaling, angles_err=angles_err)
    distinct, places = np.unique(positions, return_inverse=True)
    angle = distinct[None, :, None] * frequency_PC[:, None]
    angle = tape.near("rope.angle", angle, lambda: rounded(angle) if angles_err else none())
    within = 2.0 if angles_err else 1.0  # a function within one ulp (2 u), or a cast (u)
    cos, sin = np.cos(angle), np.sin(angle)
    noisy_cos = tape.near("rope.cosine", cos, lambda: each(within * cos))
    noisy_sin = tape.near("rope.sine", sin, lambda: each(within * sin))
    at = places.reshape(positions.shape)
    return np.concatenate([noisy_cos, noisy_cos], axis=-1)[:, at], np.concatenate([noisy_sin, noisy_sin], axis=-1)[:, at]


def _scaled(tape: Tape, f_PC: np.ndarray, scaling: RopeScaling, *, angles_err: bool) -> np.ndarray:
    """f / factor (arXiv:2306.15595), or between that and f by the wavelength w = 2 pi / f (arXiv:2407.21783): (1 - s) f / factor + s f,

    s = (L / w - low) / (high - low), clipped to 0 .. 1: the three parts agree where they meet.
    """
    slow_PC = f_PC / scaling.factor
    if scaling.rope_type == "linear":
        return tape.near("rope.scaled", slow_PC, lambda: rounded(slow_PC) if angles_err else none())
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None, "RopeScaling holds all three for llama3"
    assert high is not None
    assert length is not None
    turns = length * f_PC / (2 * np.pi)
    share = (turns - low) / (high - low)
    s_PC = np.clip(share, 0.0, 1.0)
    blended = (1 - s_PC) * slow_PC + s_PC * f_PC

    def size() -> np.ndarray:
        if not angles_err:
            return none()
        # 2 pi, the wavelength, the quotient; the difference; the share's own. Outside of 0 .. 1 nothing of it is left
        of_share = together(rounded(turns, turns, turns, turns - low) / (high - low), rounded(share))
        inside = np.where((share > 0) & (share < 1), of_share, 0.0)
        by_share = together(inside, rounded(1 - s_PC)) * (f_PC - slow_PC)
        rest = (1 - s_PC) * slow_PC
        return together(by_share, rounded(rest, rest, s_PC * f_PC, blended))

    return tape.near("rope.scaled", blended, size)


class Head:
    """One evaluation of the head: `forward`, then `backward`; head_VD is the embedding where it is tied."""

    def __init__(self, tape: Tape, *, norm: RmsNorm | LayerNorm, head_VD: np.ndarray) -> None:
        self._tape = tape
        self._norm = norm
        self._head_VD = head_VD
        self._loss: Loss | None = None

    def forward(self, x_PBTD: np.ndarray, labels_BT: np.ndarray | None) -> None:
        """Shows final_norm, logits and, with labels, the loss."""
        tape = self._tape
        self._normed: RmsNormed | LayerNormed
        self._normed, normed_PBTD = self._norm.forward(tape, tape.enter(x_PBTD))
        logits = product(normed_PBTD, self._head_VD.T)
        logits_PBTV = tape.tap("logits", logits, lambda: product_size(logits, normed_PBTD, self._head_VD.T))
        if labels_BT is not None:
            self._loss = Loss(tape, "logits", logits_PBTV, labels_BT)

    def backward(self) -> np.ndarray:
        """The cotangent of the residual stream before the head; given ones are the tape's."""
        tape = self._tape
        if self._loss is not None:
            self._loss.backward(tape)
        logits_bar = tape.bar("logits")
        normed_bar = product(logits_bar, self._head_VD)
        tape.flow("final_norm", normed_bar, lambda: product_size(normed_bar, logits_bar, self._head_VD))
        self._normed.backward(tape, "input")
        return tape.leave()


class Loss:
    """mean of log sum exp(z) - z[label] over the labels that count; z[b, t] foretells labels[b, t + 1].

    Goodfellow et al. 2016, section 6.2.2.3; d = z - max z, L = log sum exp d. `logits` is the name of z's tap.
    """

    def __init__(self, tape: Tape, logits: str, logits_PBTV: np.ndarray, labels_BT: np.ndarray) -> None:
        ulp = tape.noise.ulp
        self._logits = logits
        self._counts = labels_BT[:, 1:] != IGNORE_INDEX
        self._label = np.where(self._counts, labels_BT[:, 1:], 0)[None, :, :, None]
        z = logits_PBTV[:, :, :-1]
        self._shifted = shifted = z - np.max(z, axis=-1, keepdims=True)
        e = np.exp(shifted)
        total = np.sum(e, axis=-1, keepdims=True)

        def total_size() -> np.ndarray:
            by_terms = np.sqrt(np.sum(np.square(exp_size(e, shifted, ulp)), axis=-1, keepdims=True))
            return together(by_terms, summed(total, np.sum(e * e, axis=-1, keepdims=True), e.shape[-1]))

        log_sum = np.log(tape.near("loss.sum", total, total_size))
        self._log_sum = tape.near("loss.log", log_sum, lambda: rounded(2 * ulp * log_sum))
        of_label = np.take_along_axis(shifted, np.broadcast_to(self._label, (z.shape[0], *self._label.shape[1:])), axis=-1)
        token_loss = np.where(self._counts, (self._log_sum - of_label)[..., 0], 0.0)
        count = int(np.count_nonzero(self._counts))

        def loss_size() -> np.ndarray:
            by_tokens = rounded(np.where(self._counts, of_label[..., 0], 0.0), token_loss)  # d, and L - d
            sum_size = together(
                np.sqrt(np.sum(np.square(by_tokens), axis=(1, 2))),
                summed(np.sum(token_loss, axis=(1, 2)), np.sum(token_loss**2, axis=(1, 2)), count),
            )
            return together(sum_size / count, rounded(np.sum(token_loss, axis=(1, 2)) / count))

        self._count = count
        tape.tap("loss", np.sum(token_loss, axis=(1, 2)) / count, loss_size)

    def backward(self, tape: Tape) -> None:
        """logits_bar = loss_bar / count (softmax(z) - [v = label]) where the label counts, exactly 0 elsewhere."""
        scale = (tape.bar("loss") / self._count)[:, None, None, None] * self._counts[None, :, :, None]
        log_p = self._shifted - self._log_sum
        p = np.exp(log_p)
        deviation = p.copy()
        label = np.broadcast_to(self._label, (*deviation.shape[:-1], 1))
        np.put_along_axis(deviation, label, np.take_along_axis(deviation, label, axis=-1) - 1, axis=-1)
        bar = scale * deviation

        def size() -> Mixed:
            own = 2 * tape.noise.ulp * p / np.sqrt(3)
            of_p = together(own, rounded(p * self._shifted, p * log_p, p))  # d and d - L as exp's argument; a quotient's rounding
            return once(_and_last(together(scale * together(of_p, rounded(deviation)), rounded(bar))), _and_last(bar))

        tape.flow(self._logits, _and_last(bar), size)


def _and_last(bar_PBTV: np.ndarray) -> np.ndarray:
    """The last position foretells nothing: its cotangent is zero."""
    return np.concatenate([bar_PBTV, np.zeros_like(bar_PBTV[:, :, :1])], axis=2)
