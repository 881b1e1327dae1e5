"""Laws of softmax, of attention and of rotary position embedding.

Legend: T and S tokens, N columns, B sequences, H and K heads of query and of key and value, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from parity.checks import laws, strategies
from parity.checks.check import Case, Check
from parity.checks.laws import Answer, Asked, Law, Sides
from parity.reference.attention import attention
from parity.reference.primitive import Attributes, Tensors
from parity.reference.rope import rope, rope_tables
from parity.reference.running_error import Computed
from parity.reference.softmax import softmax

SOFTMAX = (4, 17)
"""(tokens, columns)."""


@st.composite
def _rows(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    values = {"x": laws.on_grid(rng, SOFTMAX), "y_bar": rng.standard_normal(SOFTMAX)}
    return Case(name=f"rows {SOFTMAX}, seed {seed}", inputs=strategies.by_dtype(values))


def _sum_to_one(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    sums_T, grad_sums_T = answers[0]["y"].sum(-1), answers[0]["x_grad"].sum(-1)
    return {"y": (sums_T, laws.exact(np.ones(sums_T.shape))), "x_grad": (grad_sums_T, laws.exact(np.zeros(sums_T.shape)))}


OF_SOFTMAX = (
    laws.permuted("softmax", "TN"),
    Law(name="a constant added", asks=laws.once(laws.shifted("x")), sides=laws.alike, exact=True),
    Law(name="rows sum to 1, their gradients to 0", asks=laws.as_it_is, sides=_sum_to_one),
)


ATTENTION = (2, 6, 3, 9, 10)
"""(sequences, heads of query, heads of key and value, tokens, head_dim)."""
WINDOW = 4


@st.composite
def _sequences(draw: st.DrawFn) -> Case:
    """Right padding, whose cotangent is 0: no token learns from it."""
    seed = draw(strategies.SEEDS)
    batch, heads, groups, tokens, head_dim = ATTENTION
    real_B1 = draw(st.lists(st.integers(2, tokens - 1), min_size=batch, max_size=batch), label="tokens that are real")
    rng = np.random.default_rng(seed)
    valid_BT = np.arange(tokens) < np.array(real_B1)[:, None]
    sizes = {"q": heads, "k": groups, "v": groups, "context_bar": heads}
    values = {name: rng.standard_normal((batch, count, tokens, head_dim)) for name, count in sizes.items()}
    values["context_bar"] *= valid_BT[:, None, :, None]
    inputs = {dtype: {**arrays, "valid": valid_BT} for dtype, arrays in strategies.by_dtype(values).items()}
    return Case(name=f"attention {ATTENTION}, {real_B1} tokens real, seed {seed}", inputs=inputs, attrs={"window": WINDOW})


def _real(asked: Asked) -> np.ndarray:
    """[B, 1, T, 1]: where a token is real."""
    real: np.ndarray = asked[0]["valid"][:, None, :, None]
    return real


def _other(array: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Other values where `kept` does not hold."""
    return np.where(kept, array, 3 - 2 * array).astype(array.dtype)


def _another_future(tensors: Tensors, attrs: Attributes) -> Asked:
    """From the middle on, all but `valid` is another."""
    past_T1 = (np.arange(tensors["q"].shape[2]) < tensors["q"].shape[2] // 2)[:, None]
    return {name: array if name == "valid" else _other(array, past_T1) for name, array in tensors.items()}, attrs


def _same_past(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    past = (slice(None), slice(None), slice(first["context"].shape[2] // 2))
    return {name: (first[name][past], second[name][past]) for name in ("context", "q_grad")}


def _other_padding(tensors: Tensors, attrs: Attributes) -> Asked:
    kept = _real((tensors, attrs))
    return {**tensors, "k": _other(tensors["k"], kept), "v": _other(tensors["v"], kept)}, attrs


def _from_the_left(valid_BT: np.ndarray) -> np.ndarray:
    """[B, T]: for each place of a left-padded row, the place in the right-padded one."""
    tokens = valid_BT.shape[1]
    places: np.ndarray = (np.arange(tokens) + valid_BT.sum(1, keepdims=True)) % tokens
    return places


def _padded_left(tensors: Tensors, attrs: Attributes) -> Asked:
    valid_BT = tensors["valid"]
    places = _from_the_left(valid_BT)
    moved = {name: np.take_along_axis(array, places[:, None, :, None], axis=2) for name, array in tensors.items() if name != "valid"}
    return {**moved, "valid": np.take_along_axis(valid_BT, places, axis=1)}, attrs


def _same_but_moved(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    kept = _real(asked[0])
    back = np.argsort(_from_the_left(asked[0][0]["valid"]), axis=1)
    rows = np.arange(len(back))[:, None]

    def real(one: Computed, *, moved: bool = False) -> Computed:
        placed = one.swapaxes(1, 2)[rows, back].swapaxes(1, 2) if moved else one
        return placed.where(np.broadcast_to(kept, placed.shape))

    # a padded row's context is never used; its gradients are zero on both sides, and compared
    sides = {name: (one, second[name].swapaxes(1, 2)[rows, back].swapaxes(1, 2)) for name, one in first.items() if name != "context"}
    return {"context": (real(first["context"]), real(second["context"], moved=True)), **sides}


def _all_seen(tensors: Tensors, attrs: Attributes) -> tuple[Asked, Asked]:
    """Said in two ways."""
    without = {name: array for name, array in tensors.items() if name != "valid"}
    said = {**without, "valid": np.ones_like(tensors["valid"])}
    return (without, {**attrs, "window": None}), (said, {**attrs, "window": tensors["q"].shape[2]})


def _repeated_heads(tensors: Tensors, attrs: Attributes) -> Asked:
    times = tensors["q"].shape[1] // tensors["k"].shape[1]
    return {**tensors, **{name: np.repeat(tensors[name], times, axis=1) for name in ("k", "v")}}, attrs


def _summed_heads(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers

    def summed(one: Computed, groups: int) -> Computed:
        batch, heads, tokens, head_dim = one.shape
        return one.reshape(batch, groups, heads // groups, tokens, head_dim).sum(2)

    return {
        name: (one, summed(second[name], one.shape[1]) if name in ("k_grad", "v_grad") else second[name]) for name, one in first.items()
    }


OF_ATTENTION = (
    laws.permuted("attention", "BE"),
    Law(name="another future", asks=laws.once(_another_future), sides=_same_past, exact=True),
    Law(name="other padding", asks=laws.once(_other_padding), sides=laws.alike, exact=True),
    Law(name="padding on the left", asks=laws.once(_padded_left), sides=_same_but_moved),
    Law(name="a window as long as the text, all valid", asks=_all_seen, sides=laws.alike),
    Law(name="key and value heads repeated", asks=laws.once(_repeated_heads), sides=_summed_heads),
)


ROPE = (2, 3, 4, 6)
"""(sequences, heads, tokens, head_dim)."""
FACTOR = 2.0
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@st.composite
def _turned(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    batch, _, tokens, _ = ROPE
    positions = rng.integers(0, 2 ** draw(st.sampled_from((5, 12, 19)), label="bits of a position"), (batch, tokens))
    values = {"x": rng.standard_normal(ROPE), "y_bar": rng.standard_normal(ROPE)}
    inputs = {dtype: {**arrays, "positions": positions} for dtype, arrays in strategies.by_dtype(values).items()}
    return Case(name=f"RoPE {ROPE}, seed {seed}", inputs=inputs, attrs={"theta": 1e4, "scaling": None})


def _moved_by(distance: int) -> laws.Change:
    return lambda tensors, attrs: ({**tensors, "positions": tensors["positions"] + distance}, attrs)


def _same_scores(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """Head 0 takes the query's part, head 1 the key's; scores of every pair of tokens of a sequence."""

    def scores(one: Computed) -> Computed:
        return one[:, 0] @ one[:, 1].swapaxes(-1, -2)

    first, second = answers
    return {name: (scores(first[name]), scores(second[name])) for name in first}


def _same_norms(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    def norms(one: Computed) -> Computed:
        half = one.shape[-1] // 2
        return one[..., :half] * one[..., :half] + one[..., half:] * one[..., half:]

    given = {"y": laws.exact(asked[0][0]["x"]), "x_grad": laws.exact(asked[0][0]["y_bar"])}
    return {name: (norms(answers[0][name]), norms(one)) for name, one in given.items()}


def _at_zero(tensors: Tensors, attrs: Attributes) -> tuple[Asked]:
    return (({**tensors, "positions": np.zeros_like(tensors["positions"])}, attrs),)


def _untouched(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    given = asked[0][0]
    return {"y": (answers[0]["y"], laws.exact(given["x"])), "x_grad": (answers[0]["x_grad"], laws.exact(given["y_bar"]))}


OF_ROPE = (
    laws.permuted("rope", "BT"),
    Law(name="all positions moved", asks=laws.once(_moved_by(1000)), sides=_same_scores),
    Law(name="norms of pairs", asks=laws.as_it_is, sides=_same_norms),
    Law(name="position 0", asks=_at_zero, sides=_untouched, exact=True),
)


@st.composite
def _positions(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    positions = np.random.default_rng(seed).integers(0, 2**19, ROPE[2])
    inputs = {dtype: {"positions": positions} for dtype in ("float64", "float32")}
    return Case(name=f"tables, seed {seed}", inputs=inputs, attrs={"head_dim": ROPE[3], "theta": 1e4, "scaling": None})


def _stretched(tensors: Tensors, attrs: Attributes) -> Asked:
    linear = {"rope_type": "linear", "factor": FACTOR}
    return {"positions": int(FACTOR) * tensors["positions"]}, {**attrs, "scaling": linear}


def _factor_one(tensors: Tensors, attrs: Attributes) -> Asked:
    return tensors, {**attrs, "scaling": {**LLAMA3, "factor": 1.0}}


def _circle(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    cos, sin = answers[0]["cos"], answers[0]["sin"]
    return {"cos^2 + sin^2": (cos * cos + sin * sin, laws.exact(np.ones(cos.shape)))}


OF_TABLES = (
    Law(name="linear scaling at stretched positions", asks=laws.once(_stretched), sides=laws.alike, exact=True),
    Law(name="llama3 scaling by 1", asks=laws.once(_factor_one), sides=laws.alike),
    Law(name="on the circle", asks=laws.as_it_is, sides=_circle),
)


CHECKS: tuple[Check, ...] = (
    laws.check("softmax", softmax, _rows(), OF_SOFTMAX, title="laws of softmax: shifts, sums, permutations"),
    laws.check(
        "attention", attention, _sequences(), OF_ATTENTION, title="laws of attention: causality, padding, windows, grouped heads",
        dtypes=("float64",),
    ),
    laws.check("rope", rope, _turned(), OF_ROPE, title="laws of RoPE: relative positions, norms, position 0"),
    laws.check("rope_tables", rope_tables, _positions(), OF_TABLES, title="laws of RoPE's tables: scalings that are none"),
)  # fmt: skip
