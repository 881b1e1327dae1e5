"""Laws of cross-entropy, of gradient clipping and of the AdamW step.

Legend: T tokens, V vocabulary, M, K and N as contract/worker/operations.py has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from parity.checks import laws, strategies
from parity.checks.check import Case, Check
from parity.checks.laws import Answer, Asked, Law, Sides
from parity.reference.adamw import adamw_step
from parity.reference.clip_gradients import SMALL, clip_gradients
from parity.reference.cross_entropy import cross_entropy
from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Computed

TOKENS, VOCABULARY = 7, 33
IGNORED = (1, 4)
MICRO_BATCHES = ((0, 2), (2, 7))
"""Of different lengths, and of 1 and 4 supervised tokens."""
IGNORE_INDEX = -100


@st.composite
def _labelled(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, VOCABULARY, TOKENS)
    labels[list(IGNORED)] = IGNORE_INDEX
    values = {"logits": laws.on_grid(rng, (TOKENS, VOCABULARY)), "loss_bar": np.asarray(rng.uniform(0.5, 2.0))}
    return Case(
        name=f"cross-entropy ({TOKENS}, {VOCABULARY}), {IGNORED} ignored, seed {seed}",
        inputs={dtype: {**arrays, "labels": labels} for dtype, arrays in strategies.by_dtype(values).items()},
        attrs={"reduction": "mean", "ignore_index": IGNORE_INDEX},
    )


def _rows(tensors: Tensors, rows: np.ndarray) -> Tensors:
    return {**tensors, "logits": tensors["logits"][rows].copy(), "labels": tensors["labels"][rows].copy()}


def _micro_batches(tensors: Tensors, attrs: Attributes) -> tuple[Asked, ...]:
    parts = [(_rows(tensors, np.arange(*part)), {**attrs, "reduction": "sum"}) for part in MICRO_BATCHES]
    return ((tensors, attrs), *parts)


def _accumulated(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    whole, *parts = answers
    count = laws.exact(np.asarray(_supervised(asked[0][0]).size))
    loss = parts[0]["loss"]
    for part in parts[1:]:
        loss = loss + part["loss"]
    grad = Computed.concatenate([part["logits_grad"] for part in parts], 0)
    return {"loss": (whole["loss"], loss / count), "logits_grad": (whole["logits_grad"], grad / count)}


def _supervised(tensors: Tensors) -> np.ndarray:
    return np.flatnonzero(tensors["labels"] != IGNORE_INDEX)


def _without_ignored(tensors: Tensors, attrs: Attributes) -> Asked:
    return _rows(tensors, _supervised(tensors)), {**attrs, "reduction": "sum"}


def _same_but_ignored(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """The mean over the supervised rows is their sum over their count."""
    first, second = answers
    kept_S = _supervised(asked[0][0])
    count = laws.exact(np.asarray(kept_S.size))
    return {"loss": (first["loss"], second["loss"] / count), "logits_grad": (first["logits_grad"][kept_S], second["logits_grad"] / count)}


def _other_ignored_logits(tensors: Tensors, attrs: Attributes) -> Asked:
    ignored_T1 = (tensors["labels"] == IGNORE_INDEX)[:, None]
    return {**tensors, "logits": np.where(ignored_T1, -3 * tensors["logits"], tensors["logits"]).astype(tensors["logits"].dtype)}, attrs


def _gradients_sum_to_zero(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    sums_T = answers[0]["logits_grad"].sum(-1)
    return {"logits_grad": (sums_T, laws.exact(np.zeros(sums_T.shape)))}


OF_CROSS_ENTROPY = (
    laws.permuted("cross_entropy", "T"),
    Law(name="micro-batches", asks=_micro_batches, sides=_accumulated),
    Law(name="ignored rows removed", asks=laws.once(_without_ignored), sides=_same_but_ignored),
    Law(name="other logits where ignored", asks=laws.once(_other_ignored_logits), sides=laws.alike, exact=True),
    Law(name="a constant added", asks=laws.once(laws.shifted("logits")), sides=laws.alike, exact=True),
    Law(name="gradients sum to 0", asks=laws.as_it_is, sides=_gradients_sum_to_zero),
)


GRADIENTS = {"a": (3, 5), "b": (7,)}


@st.composite
def _clipped(draw: st.DrawFn) -> Case:
    seed, max_norm = draw(strategies.SEEDS), draw(st.sampled_from((0.3, 1.0)))
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(shape) for name, shape in GRADIENTS.items()}
    return Case(
        name=f"clipping {GRADIENTS} to {max_norm}, seed {seed}", inputs=strategies.by_dtype(values), attrs={"max_norm": max_norm}
    )  # fmt: skip


def _times(factor: float) -> laws.Change:
    return lambda tensors, attrs: ({name: array * array.dtype.type(factor) for name, array in tensors.items()}, attrs)


def _norm_doubled(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    return {"norm": (first["norm"] * 2.0, second["norm"])}


def _negated(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    return {name: (one if name == "norm" else -one, second[name]) for name, one in first.items()}


def _unbound(tensors: Tensors, attrs: Attributes) -> tuple[Asked]:
    return ((tensors, {"max_norm": 1e3}),)


def _untouched(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    return {name: (answers[0][f"{name}_clipped"], laws.exact(given)) for name, given in asked[0][0].items()}


def _as_long_as_asked(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """The norm of what is clipped is max_norm, but for the 1e-6 in the divisor."""
    one, max_norm = answers[0], asked[0][1]["max_norm"]
    flat = Computed.concatenate([one[name].reshape(-1) for name in ("a_clipped", "b_clipped")], 0)
    return {"norm": ((flat * flat).sum(0).sqrt(), max_norm * one["norm"] / (one["norm"] + SMALL))}


OF_CLIPPING = (
    laws.permuted("clip_gradients", "MKN"),
    Law(name="doubled", asks=laws.once(_times(2.0)), sides=_norm_doubled, exact=True),
    Law(name="signs flipped", asks=laws.once(_times(-1.0)), sides=_negated, exact=True),
    Law(name="a clip that does not bind", asks=_unbound, sides=_untouched, exact=True),
    Law(name="a clip that binds", asks=laws.as_it_is, sides=_as_long_as_asked),
)


PARAMETERS = 65


@st.composite
def _step(draw: st.DrawFn) -> Case:
    seed, step = draw(strategies.SEEDS), draw(st.sampled_from((0, 10)))
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(PARAMETERS) for name in ("weight", "gradient", "m")} | {"v": rng.uniform(0.1, 2.0, PARAMETERS)}
    inputs = {dtype: {**arrays, "step": np.asarray(step)} for dtype, arrays in strategies.by_dtype(values).items()}
    attrs = {"lr": 0.02, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}
    return Case(name=f"AdamW on {PARAMETERS} parameters, step {step}, seed {seed}", inputs=inputs, attrs=attrs)


SIGNED = ("weight", "gradient", "m")


def _signs_flipped(tensors: Tensors, attrs: Attributes) -> Asked:
    return {name: -array if name in SIGNED else array for name, array in tensors.items()}, attrs


def _step_flipped(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    return {name: (-one if name in ("weight_next", "m_next") else one, second[name]) for name, one in first.items()}


def _at_rest(tensors: Tensors, attrs: Attributes) -> tuple[Asked]:
    still = {name: array if name in ("weight", "step") else np.zeros_like(array) for name, array in tensors.items()}
    return ((still, {**attrs, "weight_decay": 0.0}),)


def _nothing_moves(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    given = asked[0][0]
    wanted = {"weight_next": given["weight"], "m_next": given["m"], "v_next": given["v"], "step_next": given["step"] + 1}
    return {name: (answers[0][name], laws.exact(array)) for name, array in wanted.items()}


OF_ADAMW = (
    laws.permuted("adamw_step", "N"),
    Law(name="signs flipped", asks=laws.once(_signs_flipped), sides=_step_flipped, exact=True),
    Law(name="at rest", asks=_at_rest, sides=_nothing_moves, exact=True),
)


CHECKS: tuple[Check, ...] = (
    laws.check(
        "cross_entropy", cross_entropy, _labelled(), OF_CROSS_ENTROPY, title="laws of cross-entropy: micro-batches, ignored rows, shifts",
        dtypes=("float64",),
    ),
    laws.check("clip_gradients", clip_gradients, _clipped(), OF_CLIPPING, title="laws of clipping: identity, scale, the norm asked for"),
    laws.check("adamw_step", adamw_step, _step(), OF_ADAMW, title="laws of AdamW: signs, permutations, rest"),
)  # fmt: skip
