"""What stands before the blocks of a Llama-type graph and after them, in float64: embedding, RoPE tables, head and loss.

Legend: P runs, B sequences, T tokens, D hidden_size, V vocab_size, E head_dim.
"""

from __future__ import annotations

import numpy as np

from contract.worker.graph import IGNORE_INDEX
from parity.reference.llama_operations import Constants, RmsNorm, exp_size, product, product_size
from parity.reference.rounding import none, rounded, summed, together
from parity.reference.tape import Tape


def rope_tables(tape: Tape, tokens: int, head_dim: int, theta: float, *, angles_err: bool) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [P, T, E] of t theta^(-2 i / E), i = 0 .. E / 2 - 1, twice over (arXiv:2104.09864, section 3.2.2), not yet taps.

    A table is computed in float64 and cast once, so in float32 only the cast errs; with `angles_err` (in float64 itself) the power,
    the angle and the function do too. Every layer and sequence uses the same table, with the same error.
    """
    exponent = np.arange(0, head_dim, 2) / head_dim
    frequency = np.asarray(theta**-exponent)[None]

    def frequency_size() -> np.ndarray:
        if not angles_err:
            return none()
        # the exponent's rounding, the power within one ulp, a reciprocal
        return together(rounded(frequency * exponent * np.log(theta)), rounded(2 * frequency), rounded(frequency))

    frequency = tape.near("rope.frequency", frequency, frequency_size)
    angle = np.arange(tokens)[None, :, None] * frequency[:, None]
    angle = tape.near("rope.angle", angle, lambda: rounded(angle) if angles_err else none())
    within = 2.0 if angles_err else 1.0  # a function within one ulp (2 u), or a cast (u)
    cos, sin = np.cos(angle), np.sin(angle)
    noisy_cos = tape.near("rope.cosine", cos, lambda: rounded(within * cos))
    noisy_sin = tape.near("rope.sine", sin, lambda: rounded(within * sin))
    return np.concatenate([noisy_cos, noisy_cos], axis=-1), np.concatenate([noisy_sin, noisy_sin], axis=-1)


class Head:
    """One evaluation of the head: `forward`, then `backward`; head_VD is the embedding where it is tied."""

    def __init__(self, tape: Tape, *, norm_D: np.ndarray, head_VD: np.ndarray, constants: Constants) -> None:
        self._tape = tape
        self._norm_D = norm_D
        self._head_VD = head_VD
        self._constants = constants
        self._loss: _Loss | None = None

    def forward(self, x_PBTD: np.ndarray, labels_BT: np.ndarray | None) -> None:
        """Shows final_norm, logits and, with labels, the loss."""
        tape = self._tape
        self._norm, normed_PBTD = RmsNorm.forward(tape, "final_norm", tape.enter(x_PBTD), self._norm_D, self._constants)
        logits = product(normed_PBTD, self._head_VD.T)
        logits_PBTV = tape.tap("logits", logits, lambda: product_size(logits, normed_PBTD, self._head_VD.T))
        if labels_BT is not None:
            self._loss = _Loss(tape, logits_PBTV, labels_BT)

    def backward(self) -> np.ndarray:
        """The cotangent of the residual stream before the head; given ones are the tape's."""
        tape = self._tape
        if self._loss is not None:
            self._loss.backward(tape)
        logits_bar = tape.bar("logits")
        normed_bar = product(logits_bar, self._head_VD)
        tape.flow("final_norm", normed_bar, lambda: product_size(normed_bar, logits_bar, self._head_VD))
        self._norm.backward(tape, "input", self._constants)
        return tape.leave()


class _Loss:
    """mean of log sum exp(z) - z[label] over the labels that count; z[b, t] foretells labels[b, t + 1].

    Goodfellow et al. 2016, section 6.2.2.3; d = z - max z, L = log sum exp d.
    """

    def __init__(self, tape: Tape, logits_PBTV: np.ndarray, labels_BT: np.ndarray) -> None:
        ulp = tape.noise.exp_ulp
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

        def size() -> np.ndarray:
            own = 2 * tape.noise.exp_ulp * p / np.sqrt(3)
            of_p = together(own, rounded(p * self._shifted, p * log_p, p))  # d and d - L as exp's argument; a quotient's rounding
            return _and_last(together(scale * together(of_p, rounded(deviation)), rounded(bar)))

        tape.flow("logits", _and_last(bar), size)


def _and_last(bar_PBTV: np.ndarray) -> np.ndarray:
    """The last position foretells nothing: its cotangent is zero."""
    return np.concatenate([bar_PBTV, np.zeros_like(bar_PBTV[:, :, :1])], axis=2)
