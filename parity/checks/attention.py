"""Tier A: causal attention with grouped queries, a window and padding, forward and gradient.

Domain: scores up to some 1e4 (a score's error is exp's relative error: at 1e7 no float32 softmax means anything), v and the cotangent up
to 1e6 times a normal number. A query whose own token is padding is asked like any other; one that sees nothing has context exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Arrays, Case, Check
from parity.checks.primitive import check, exact_check
from parity.reference.attention import attention


@dataclass(frozen=True)
class Shape:
    """sequences, heads, key heads, tokens, head_dim; the windows and the padding that it goes with.

    `valid` is given or not, always, since a stack that compiles does so for either.
    """

    batch: int
    heads: int
    key_heads: int
    length: int
    head_dim: int
    windows: tuple[int | None, ...]
    padding: tuple[str, ...] = ("none",)

    def __str__(self) -> str:
        return f"{(self.batch, self.heads, self.key_heads, self.length, self.head_dim)}"

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor with values."""
        query = (self.batch, self.heads, self.length, self.head_dim)
        key = (self.batch, self.key_heads, self.length, self.head_dim)
        return {"q": query, "k": key, "v": key, "context_bar": query}


ONE_KEY_HEAD = Shape(1, 3, 1, 3, 4, (None, 1))
PLAIN = Shape(1, 4, 2, 5, 16, (None, 2, 1))
PADDED = Shape(2, 6, 3, 7, 6, (None, 4, 9), ("left", "right", "whole", "holes"))
SHAPES = (ONE_KEY_HEAD, PLAIN, PADDED)
"""Windows of one token, smaller than the sequence by more than 2, and longer; key heads: one, and some; a head_dim whose root is no
power of two."""

EXACT_WINDOW = 2
"""A token of PLAIN then sees 1 or 2; head_dim 16, whose root and fourth root are powers of two."""

EXACT_BITS = {"float32": 13, "float64": 42}
"""Bits of the odd integers: a score's cotangent has five bits more, two of them behind the point, its sums with k two more."""

SCORED: dict[str, strategies.Fill] = {
    **{
        kind: strategies.VALUES[kind]
        for kind in ("small integers", "gaussian", "positive", "all equal", "cancelling", "subnormal products")
    },
    "spread": lambda rng, shape: 7 * rng.standard_normal(shape),  # scores 50 apart and more: exp underflows
    "huge": lambda rng, shape: 100 + rng.standard_normal(shape),  # scores of 1e4 and more
}
"""q and k: what makes scores. v and the cotangent, in which everything is linear, take all values."""

BELOW = (False, False, False, False, True)
"""How often all scores lie at -1e4 and below: a mask of -1e4 in the place of -inf then hides nothing."""


def valid_tokens(kind: str, rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """[B, T]: padding on the left or the right, ragged; a sequence that is padding as a whole; padding anywhere."""
    count = rng.integers(1, length, (batch, 1))
    token = np.arange(length)
    valid: np.ndarray = {
        "left": token >= length - count,
        "right": token < count,
        "whole": (token < count) & (np.arange(batch)[:, None] > 0),
        "holes": rng.random((batch, length)) < 0.6,
    }[kind]
    return valid


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    window, padding = draw(st.sampled_from(shape.windows), label="window"), draw(st.sampled_from(shape.padding), label="padding")
    fills = {"q": SCORED, "k": SCORED, "v": strategies.VALUES, "context_bar": strategies.VALUES}
    kinds = {name: draw(st.sampled_from(list(fills[name])), label=name) for name in fills}
    below = draw(st.sampled_from(BELOW), label="scores far below 0")
    if below:
        kinds |= {"q": "huge", "k": "huge"}
    rng = np.random.default_rng(seed)
    values = {name: fills[name][kinds[name]](rng, size) for name, size in shape.sizes().items()}
    if below:
        values["k"] *= -1
    inputs, where = strategies.by_dtype(values), ", scores far below 0" if below else ""
    masks: Arrays = {} if padding == "none" else {"valid": valid_tokens(padding, rng, shape.batch, shape.length)}
    return Case(
        name=f"attention {shape}, window {window}, padding {padding}, {kinds}{where}, seed {seed}",
        inputs={dtype: {**arrays, **masks} for dtype, arrays in inputs.items()},
        attrs={"window": window},
    )


@st.composite
def _exact(draw: st.DrawFn) -> Case:
    """q = 0: every weight is 1 or 1/2, a context the mean of one or two integers."""
    seed = draw(strategies.SEEDS)
    role = draw(st.sampled_from(("v", "context_bar")), label="which operand holds the odd integers")
    inputs = {}
    for dtype, bits in EXACT_BITS.items():
        rng = np.random.default_rng(seed)
        values = {
            name: strategies.odd_integers(rng, size, bits) if name == role else strategies.signs(rng, size)
            for name, size in PLAIN.sizes().items()
        }
        values["q"][:] = 0
        inputs[dtype] = {name: array.astype(dtype) for name, array in values.items()}
    return Case(name=f"attention with q = 0, odd integers in {role}, seed {seed}", inputs=inputs, attrs={"window": EXACT_WINDOW})


CHECKS: tuple[Check, ...] = (
    check("a.attention", "attention", attention, _drawn(), title="causal attention, groups, window, padding, and its gradients"),
    exact_check("a.attention_exact", "attention", attention, _exact(), title="attention with q = 0 is the mean of what is seen"),
)
