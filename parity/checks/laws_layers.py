"""Laws of the embedding, of norms, of activations and of the linear layer with an adapter.

Legend: T tokens, D width, V vocabulary, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from parity.checks import laws, strategies
from parity.checks.check import Case, Check
from parity.checks.laws import Answer, Asked, Law, Sides
from parity.reference.embedding import embedding
from parity.reference.gelu import gelu
from parity.reference.layer_norm import layer_norm
from parity.reference.lora_linear import lora_linear, scaling
from parity.reference.primitive import Attributes, Tensors
from parity.reference.rms_norm import rms_norm
from parity.reference.running_error import REFERENCE, Arithmetic, Computed
from parity.reference.silu import silu
from parity.reference.swiglu import swiglu

EMBEDDING = (11, 5, 7)
"""(vocabulary, width, tokens)."""


@st.composite
def _embedded(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    vocabulary, width, tokens = EMBEDDING
    values = {"weight": rng.standard_normal((vocabulary, width)), "y_bar": rng.standard_normal((tokens, width))}
    ids = rng.integers(0, vocabulary, tokens)
    ids[-1] = ids[0]
    inputs = {dtype: {**arrays, "ids": ids} for dtype, arrays in strategies.by_dtype(values).items()}
    return Case(name=f"embedding {EMBEDDING}, ids {ids.tolist()}, seed {seed}", inputs=inputs)


def _renamed(tensors: Tensors, attrs: Attributes) -> Asked:
    """Every id is the next one, and its row too."""
    return {**tensors, "weight": np.roll(tensors["weight"], 1, axis=0), "ids": (tensors["ids"] + 1) % EMBEDDING[0]}, attrs


def _same_rows(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    return {
        "y": (first["y"], second["y"]),
        "weight_grad": (first["weight_grad"][np.arange(EMBEDDING[0]) - 1], second["weight_grad"]),
    }


OF_EMBEDDING = (
    laws.permuted("embedding", "TD"),
    Law(name="ids renamed", asks=laws.once(_renamed), sides=_same_rows, exact=True),
)


ROWS = (3, 24)
"""(tokens, width)."""
EPS = 1e-2
"""Large enough to see where it stands."""


@st.composite
def _normed(draw: st.DrawFn, *, biased: bool) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    values = {"x": laws.on_grid(rng, ROWS), "weight": rng.uniform(0.5, 2.0, ROWS[1]), "y_bar": rng.standard_normal(ROWS)}
    if biased:
        values["bias"] = rng.standard_normal(ROWS[1])
    return Case(name=f"norm of {ROWS}, seed {seed}", inputs=strategies.by_dtype(values), attrs={"eps": EPS})


EXPONENT = 3


def _larger(tensors: Tensors, attrs: Attributes) -> Asked:
    return {**tensors, "x": np.ldexp(tensors["x"], EXPONENT)}, {**attrs, "eps": attrs["eps"] * 4.0**EXPONENT}


def _same_direction(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    return {name: (one, second[name] * 2.0**EXPONENT if name == "x_grad" else second[name]) for name, one in first.items()}


SCALED = Law(name="x and its eps scaled", asks=laws.once(_larger), sides=_same_direction, exact=True)
OF_RMS_NORM = (laws.permuted("rms_norm", "TD"), SCALED)
OF_LAYER_NORM = (
    laws.permuted("layer_norm", "TD"),
    SCALED,
    Law(name="a constant added", asks=laws.once(laws.shifted("x")), sides=laws.alike),
)


ELEMENTS = 130
GELUS = ({"approximate": "none"}, {"approximate": "tanh"})


@st.composite
def _elements(draw: st.DrawFn, palette: Sequence[Attributes]) -> Case:
    seed, attrs = draw(strategies.SEEDS), draw(st.sampled_from(palette))
    rng = np.random.default_rng(seed)
    values = {"x": 4 * rng.standard_normal(ELEMENTS), "y_bar": rng.standard_normal(ELEMENTS)}
    return Case(name=f"{ELEMENTS} elements, {attrs}, seed {seed}", inputs=strategies.by_dtype(values), attrs=attrs)


def _mirrored(tensors: Tensors, attrs: Attributes) -> Asked:
    return {**tensors, "x": -tensors["x"]}, attrs


def _odd_part(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """x g(x) with g(x) + g(-x) = 1: y(x) - y(-x) = x, and the slopes of x and -x add to 1."""
    first, second = answers
    given = asked[0][0]
    return {
        "y": (first["y"] - second["y"], laws.exact(given["x"])),
        "x_grad": (first["x_grad"] + second["x_grad"], laws.exact(given["y_bar"])),
    }


def _gate(op: str) -> tuple[Law, ...]:
    return laws.permuted(op, "T"), Law(name="mirrored", asks=laws.once(_mirrored), sides=_odd_part)


GATED = (4, 33)
"""(tokens, width)."""


@st.composite
def _gated(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    values = {"gate": 4 * rng.standard_normal(GATED), "up": rng.standard_normal(GATED), "y_bar": rng.standard_normal(GATED)}
    return Case(name=f"SwiGLU of {GATED}, seed {seed}", inputs=strategies.by_dtype(values))


def _up_doubled(tensors: Tensors, attrs: Attributes) -> Asked:
    return {**tensors, "up": 2 * tensors["up"]}, attrs


def _linear_in_up(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    return {name: (one if name == "up_grad" else one * 2.0, second[name]) for name, one in first.items()}


OF_SWIGLU = (
    laws.permuted("swiglu", "TD"),
    Law(name="up doubled", asks=laws.once(_up_doubled), sides=_linear_in_up, exact=True),
)


LORA = (7, 33, 4, 20)
"""(tokens, in_features, rank, out_features)."""


@st.composite
def _adapted(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    tokens, inner, rank, outer = LORA
    sizes = {"x": (tokens, inner), "weight": (outer, inner), "bias": (outer,), "lora_a": (rank, inner), "lora_b": (outer, rank)}
    values = {name: rng.standard_normal(size) for name, size in {**sizes, "y_bar": (tokens, outer)}.items()}
    attrs = {"alpha": 12.0, "rslora": True, "dropout": 0.0}
    return Case(name=f"LoRA {LORA}, seed {seed}", inputs=strategies.by_dtype(values), attrs=attrs)


def _without_b(tensors: Tensors) -> Tensors:
    return {**tensors, "lora_b": np.zeros_like(tensors["lora_b"])}


def _fresh_and_base(tensors: Tensors, attrs: Attributes) -> tuple[Asked, Asked]:
    base = {name: array for name, array in tensors.items() if name not in ("lora_a", "lora_b")}
    return (_without_b(tensors), attrs), (base, {"frozen": ["weight", "bias"]})


def _is_the_base(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """The reference has no term for a B of 0, so that its error is the base's too."""
    fresh, base = answers
    return {name: (fresh[name], Computed(base[name].value, fresh[name].error, REFERENCE)) for name in ("y", "x_grad")}


def _another_a(tensors: Tensors, attrs: Attributes) -> tuple[Asked, Asked]:
    fresh = _without_b(tensors)
    return (fresh, attrs), ({**fresh, "lora_a": 3 - fresh["lora_a"]}, attrs)


def _whatever_a_is(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    first, second = answers
    zeros_RI = laws.exact(np.zeros(first["lora_a_grad"].shape))
    same = {name: (first[name], second[name]) for name in ("y", "x_grad")}
    return {**same, "lora_a_grad": (first["lora_a_grad"], zeros_RI), "lora_a_grad again": (second["lora_a_grad"], zeros_RI)}


def _alphas(tensors: Tensors, attrs: Attributes) -> tuple[Asked, Asked, Asked]:
    return (_without_b(tensors), attrs), (tensors, attrs), (tensors, {**attrs, "alpha": 2 * attrs["alpha"]})


def _delta_doubled(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """Answers with no B, with B, and with twice the alpha: their deltas, and B's gradient."""
    none, one, two = answers
    deltas = {name: (two[name] - none[name], 2.0 * (one[name] - none[name])) for name in ("y", "x_grad")}
    return {
        **deltas,
        "lora_a_grad": (two["lora_a_grad"], 2.0 * one["lora_a_grad"]),
        "lora_b_grad": (two["lora_b_grad"], 2.0 * one["lora_b_grad"]),
        "lora_b_grad without B": (none["lora_b_grad"], one["lora_b_grad"]),
    }


def _all_kept(tensors: Tensors, attrs: Attributes) -> tuple[Asked, Asked]:
    """Every element kept at a dropout of 1/2 is twice the adapter."""
    kept = {**tensors, "keep": np.ones(tensors["x"].shape, bool)}
    return (kept, {**attrs, "dropout": 0.5}), (tensors, {**attrs, "alpha": 2 * attrs["alpha"]})


def _merged_weight(tensors: Tensors, attrs: Attributes) -> Computed:
    """W + s B A, and what storing it in the weight's dtype rounds."""
    weight_OI, lora_a_RI, lora_b_OR = (laws.exact(tensors[name]) for name in ("weight", "lora_a", "lora_b"))
    merged_OI = weight_OI + scaling(attrs, lora_a_RI.shape[0]) * (lora_b_OR @ lora_a_RI)
    stored = Arithmetic(tensors["weight"].dtype.name)
    return Computed(merged_OI.value, merged_OI.error + stored.u * merged_OI.size, REFERENCE)


def _merged(tensors: Tensors, attrs: Attributes) -> Asked:
    return {**_without_b(tensors), "weight": _merged_weight(tensors, attrs).value.astype(tensors["weight"].dtype)}, attrs


def _same_as_merged(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    adapted, merged = answers
    given, attrs = asked[0]
    error_OI = _merged_weight(given, attrs).error
    rounding_OI = Computed(np.zeros(error_OI.shape), error_OI, REFERENCE)
    x_TI, y_bar_TO = laws.exact(given["x"]), laws.exact(given["y_bar"])
    return {
        "y": (adapted["y"], merged["y"] + x_TI @ rounding_OI.swapaxes(0, 1)),
        "x_grad": (adapted["x_grad"], merged["x_grad"] + y_bar_TO @ rounding_OI),
    }


OF_LORA = (
    laws.permuted("lora_linear", "TIOR"),
    Law(name="B = 0 is the base", asks=_fresh_and_base, sides=_is_the_base, ops=("lora_linear", "linear")),
    Law(name="B = 0 and another A", asks=_another_a, sides=_whatever_a_is, exact=True),
    Law(name="alpha doubled", asks=_alphas, sides=_delta_doubled),
    Law(name="all kept", asks=_all_kept, sides=laws.alike),
    Law(name="merged", asks=laws.once(_merged), sides=_same_as_merged),
)


CHECKS: tuple[Check, ...] = (
    laws.check("embedding", embedding, _embedded(), OF_EMBEDDING, title="laws of the embedding: permutations, renamed ids"),
    laws.check("rms_norm", rms_norm, _normed(biased=False), OF_RMS_NORM, title="laws of RMSNorm: permutations, scale"),
    laws.check(
        "layer_norm", layer_norm, _normed(biased=True), OF_LAYER_NORM, title="laws of LayerNorm: permutations, scale, shift",
        dtypes=("float64",),
    ),
    laws.check("silu", silu, _elements([{}]), _gate("silu"), title="laws of SiLU: y(x) - y(-x) = x"),
    laws.check("gelu", gelu, _elements(GELUS), _gate("gelu"), title="laws of GELU: y(x) - y(-x) = x", dtypes=("float64",)),
    laws.check("swiglu", swiglu, _gated(), OF_SWIGLU, title="laws of SwiGLU: permutations, linear in up"),
    laws.check(
        "lora_linear", lora_linear, _adapted(), OF_LORA, title="laws of the adapter: B = 0 is the base, alpha, all kept, merged weight",
        dtypes=("float64",),
    ),
)  # fmt: skip
