"""Tier A: embedding rows, and the gradient of the weight where ids repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check, exact_check
from parity.reference.embedding import embedding

SHAPES = ((2, 3, 4), (11, 5, 7), (67, 16, 33))
"""(vocabulary, width, tokens)."""

EXACT_BITS = {"float32": 18, "float64": 46}
"""Odd integers of that many bits, at most 33 of which are added: sums stay under 2^24 and 2^53."""

EXACT_EVERY = 3
"""The check on integers draws one of so many examples: its shapes and ids are all it varies."""


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    (vocabulary, width, tokens), seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    kinds = {name: draw(st.sampled_from(list(strategies.VALUES)), label=name) for name in ("weight", "y_bar")}
    rng = np.random.default_rng(seed)
    values = {
        "weight": strategies.VALUES[kinds["weight"]](rng, (vocabulary, width)),
        "y_bar": strategies.VALUES[kinds["y_bar"]](rng, (tokens, width)),
    }
    token_ids = ids(rng, vocabulary, tokens)
    inputs = {dtype: {**arrays, "ids": token_ids} for dtype, arrays in strategies.by_dtype(values).items()}
    return Case(name=f"embedding {(vocabulary, width, tokens)}, {kinds}, seed {seed}", inputs=inputs)


@st.composite
def _exact(draw: st.DrawFn) -> Case:
    (vocabulary, width, tokens), seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    inputs = {}
    for dtype, bits in EXACT_BITS.items():
        rng = np.random.default_rng(seed)
        token_ids = ids(rng, vocabulary, tokens)
        weight = strategies.odd_integers(rng, (vocabulary, width), bits)
        y_bar = strategies.odd_integers(rng, (tokens, width), bits)
        inputs[dtype] = {"ids": token_ids, "weight": weight.astype(dtype), "y_bar": y_bar.astype(dtype)}
    return Case(name=f"embedding {(vocabulary, width, tokens)}, odd integers, seed {seed}", inputs=inputs)


def ids(rng: np.random.Generator, vocabulary: int, tokens: int) -> np.ndarray:
    """Token ids, in any order: the first row, the last row, and one of them a second time."""
    drawn = rng.integers(0, vocabulary, tokens)
    drawn[:3] = 0, vocabulary - 1, rng.choice([0, vocabulary - 1])
    return rng.permutation(drawn)


CHECKS: tuple[Check, ...] = (
    check("a.embedding", "embedding", embedding, _drawn(), title="embedding rows, and the weight's gradient"),
    replace(
        exact_check(
            "a.embedding_exact", "embedding", embedding, _exact(), title="embedding of integers, copied and added up, bit for bit"
        ),
        cost=EXACT_EVERY,
    ),
)  # fmt: skip
