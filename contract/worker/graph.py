"""The requests on a whole graph: `open`, `state`, `forward`, `gradients`, `block`; what they carry and what they answer.

`open` gives a stack a plan, the weights and the adapter; the others ask of the graph that is open, and name it, so that no
answer comes from another one. Tensors by name:

    embedding  final_norm  lm_head (untied)  layers.0.attention_norm  layers.0.q_proj  layers.0.q_proj.bias  ...     weights, float32
    layers.0.q_proj.lora_a [R, in]  layers.0.q_proj.lora_b [out, R]  ...                                          adapter, float32

A stack widens them to the plan's dtype, exactly. `block` asks of one section alone, on given inputs:

    input               the residual stream that enters (`ids` in the section `embedding`, `labels` too in `head`)
    override.NAME       what takes the tap's place for all that follows from it; `rope.cos` and `rope.sin` may be given too
    bar.NAME            cotangent of a tap

It answers each tap of the section as computed (before its own override), and with any cotangent `grad.NAME`: the gradient of
the sum over all given cotangents of <tap, bar> with respect to `input`, each override and each adapter matrix of the section.
An override cuts the graph: what follows from it sends no gradient to what it was computed from; where nothing with a
cotangent follows from it, its gradient is zero. The RoPE tables are constants and have none.
With every tap overridden by a reference's values and every cotangent given, each tap and each gradient is one
operation's work on the reference's inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from contract.model.layout import LlamaLayout
from contract.worker import taps
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, LINEARS, Tap

IGNORE_INDEX = -100
"""The label of a token that carries no loss."""

ROPE_TABLES = ("rope.cos", "rope.sin")
"""Taps of `embedding` that blocks take; constants, so that no gradient is taken with respect to them."""

_NARROWER = ("bfloat16", "float16")

Expected = dict[str, tuple[tuple[int, ...], str]]
"""Tensor -> its shape and dtype."""


class Invalid(ValueError):
    """A request that is not the graph's: a tensor missing, unknown, of the wrong shape or dtype, or not finite."""


# What `open` carries


def weights(plan: GraphPlan) -> Expected:
    """The base weights that the plan's sections need."""
    layout, sizes = plan.layout, _sizes(plan)
    shapes: dict[str, tuple[int, ...]] = {}
    for section in plan.held:
        if section == EMBEDDING or (section == HEAD and layout.tie_word_embeddings):
            shapes["embedding"] = (sizes["V"], sizes["D"])
        if section == HEAD:
            shapes["final_norm"] = (sizes["D"],)
            if not layout.tie_word_embeddings:
                shapes["lm_head"] = (sizes["V"], sizes["D"])
        if section not in (EMBEDDING, HEAD):
            shapes |= {f"{section}.{name}": shape for name, shape in _block_weights(plan, sizes).items()}
    return {name: (shape, "float32") for name, shape in shapes.items()}


def adapter(plan: GraphPlan) -> Expected:
    """The adapter matrices of the plan's sections."""
    sizes = _sizes(plan)
    shapes: Expected = {}
    for section in plan.held:
        if section in (EMBEDDING, HEAD):
            continue
        for name, linear in LINEARS.items():
            if name in plan.targets:
                shapes[f"{section}.{name}.lora_a"] = ((sizes["R"], sizes[linear.in_dim]), "float32")
                shapes[f"{section}.{name}.lora_b"] = ((sizes[linear.out_dim], sizes["R"]), "float32")
    return shapes


def require(expected: Expected, tensors: Mapping[str, np.ndarray], what: str, *, exact: bool = False) -> None:
    """Holds tensors against what they must be.

    Args:
        exact: a narrower dtype, in which a weight may lie and which widens to float32 exactly, does not do.

    Raises:
        Invalid: one is missing, unknown, of the wrong shape or dtype, or holds NaN or infinity; names it.
    """
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors:
            raise Invalid(f"{what}: {name} is missing; it takes {len(expected)} tensors, see contract/worker/graph.py")
        if name not in expected:
            raise Invalid(f"{what}: there is no tensor {name!r}; allowed: {', '.join(sorted(expected)[:8])} ...")
        (shape, dtype), got = expected[name], tensors[name].dtype.name
        if tensors[name].shape != shape or not (got == dtype or (not exact and dtype == "float32" and got in _NARROWER)):
            raise Invalid(f"{what}: {name} is {got}{list(tensors[name].shape)}, must be {dtype}{list(shape)}")
        if not np.isfinite(tensors[name]).all():
            raise Invalid(f"{what}: {name} holds NaN or infinity; look for what made it")


def _block_weights(plan: GraphPlan, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"attention_norm": (sizes["D"],), "mlp_norm": (sizes["D"],)}
    for name, linear in LINEARS.items():
        shapes[name] = (sizes[linear.out_dim], sizes[linear.in_dim])
        if has_bias(plan.layout, name):
            shapes[f"{name}.bias"] = (sizes[linear.out_dim],)
        if plan.base is not None and plan.base.offsets_given:
            shapes[f"{name}.offset"] = ()
    return shapes


def has_bias(layout: LlamaLayout, linear: str) -> bool:
    """Whether a linear of a block has a bias."""
    return layout.attention_bias if linear in ("q_proj", "k_proj", "v_proj", "o_proj") else layout.mlp_bias


# What the others carry and answer


def require_batch(plan: GraphPlan, ids: np.ndarray, labels: np.ndarray | None) -> None:
    """Holds a batch against the layout.

    Raises:
        Invalid: shapes or dtypes that are not int64 [B, T], an id or label outside of the vocabulary, more tokens than positions, or
            labels of which none counts.
    """
    layout = plan.layout
    if ids.ndim != 2 or ids.dtype != np.int64 or ids.size == 0:
        raise Invalid(f"ids are {ids.dtype.name}{list(ids.shape)}, must be int64 [sequences, tokens], at least one of each")
    if ids.shape[1] > layout.max_position_embeddings:
        raise Invalid(f"{ids.shape[1]} tokens a sequence, allowed: max_position_embeddings = {layout.max_position_embeddings}; cut them")
    if ids.min() < 0 or ids.max() >= layout.vocab_size:
        raise Invalid(f"ids lie in {ids.min()} .. {ids.max()}, allowed: 0 .. {layout.vocab_size - 1}; is it this model's tokenizer?")
    if labels is None:
        return
    if labels.shape != ids.shape or labels.dtype != np.int64:
        raise Invalid(f"labels are {labels.dtype.name}{list(labels.shape)}, must be int64{list(ids.shape)}, as ids")
    _require_labels(layout, labels)


def _require_labels(layout: LlamaLayout, labels: np.ndarray) -> None:
    counted = labels[labels != IGNORE_INDEX]
    if counted.size and (counted.min() < 0 or counted.max() >= layout.vocab_size):
        raise Invalid(f"labels lie in {counted.min()} .. {counted.max()}, allowed: 0 .. {layout.vocab_size - 1}, or {IGNORE_INDEX}")
    if not (labels[:, 1:] != IGNORE_INDEX).any():
        raise Invalid(f"no label after the first token of a sequence counts (all are {IGNORE_INDEX}), so the mean is over nothing")


def shape_of(tap: Tap, plan: GraphPlan, batch: int, tokens: int) -> tuple[int, ...]:
    """A tap's shape."""
    sizes = _sizes(plan) | {"B": batch, "T": tokens, "S": tokens}
    return tuple(sizes[letter] for letter in tap.dims)


def tap_shapes(plan: GraphPlan, batch: int, tokens: int) -> Expected:
    """Every tap of the whole graph by its full name."""
    return {
        taps.prefix(section) + tap.name: (shape_of(tap, plan, batch, tokens), plan.dtype)
        for section in taps.sections(plan.layout.num_hidden_layers)
        for tap in taps.section_taps(section, plan.targets)
    }


def expected_graph_answer(plan: GraphPlan, wanted: Iterable[str], batch: int, tokens: int, *, gradients: bool) -> Expected:
    """What `forward` and `gradients` answer: the wanted taps, and `grad.NAME` of each adapter matrix.

    Raises:
        Invalid: there is no tap of that name.
    """
    shapes, answer = tap_shapes(plan, batch, tokens), {}
    for name in wanted:
        if name not in shapes:
            raise Invalid(f"there is no tap {name!r}; allowed: {', '.join(list(shapes)[:6])} ..., see contract/worker/taps.py")
        answer[name] = shapes[name]
    if gradients:
        answer |= {f"grad.{name}": (shape, plan.dtype) for name, (shape, _) in adapter(plan).items()}
    return answer


def expected_block_answer(plan: GraphPlan, section: str, given: Iterable[str], batch: int, tokens: int) -> Expected:
    """What `block` answers, by its tensors' names."""
    known = {tap.name: tap for tap in taps.section_taps(section, plan.targets)}
    names = set(given)
    if "labels" not in names:
        known.pop("loss", None)
    answer: Expected = {name: (shape_of(tap, plan, batch, tokens), plan.dtype) for name, tap in known.items()}
    if any(name.startswith("bar.") for name in names):
        wanted: dict[str, tuple[int, ...]] = {}
        if section != EMBEDDING:
            wanted["input"] = (batch, tokens, plan.layout.hidden_size)
        for name in sorted(names):
            own = name.removeprefix("override.")
            if name.startswith("override.") and own not in ROPE_TABLES:
                wanted[own] = shape_of(known[own], plan, batch, tokens)
        prefix = f"{section}."
        wanted |= {name.removeprefix(prefix): shape for name, (shape, _) in adapter(plan).items() if name.startswith(prefix)}
        answer |= {f"grad.{name}": (shape, plan.dtype) for name, shape in wanted.items()}
    return answer


def require_block(plan: GraphPlan, section: str, tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Holds the tensors of a `block` request against the section; its batch and tokens.

    Raises:
        Invalid: a section that is not open, a tensor that is missing, unknown, or of the wrong shape or dtype, more tokens than
            positions, or labels as `require_batch` refuses them.
    """
    if section not in plan.held:
        raise Invalid(f"section {section!r} is not open; open: {', '.join(plan.held[:4])} ...")
    first = "ids" if section == EMBEDDING else "input"
    if first not in tensors or tensors[first].ndim != (2 if section == EMBEDDING else 3):
        raise Invalid(f"block {section}: {first} is missing, or not [sequences, tokens{'' if section == EMBEDDING else ', hidden_size'}]")
    batch, tokens = tensors[first].shape[:2]
    if batch == 0 or not 0 < tokens <= plan.layout.max_position_embeddings:
        raise Invalid(
            f"block {section}: {first} has {batch} sequences of {tokens} tokens, allowed: at least one of each, and "
            f"max_position_embeddings = {plan.layout.max_position_embeddings} tokens at most"
        )
    expected: Expected = {"input": ((batch, tokens, plan.layout.hidden_size), plan.dtype)} if section != EMBEDDING else {}
    if section == EMBEDDING:
        require_batch(plan, tensors["ids"], None)
        expected["ids"] = ((batch, tokens), "int64")
    if section == HEAD and "labels" in tensors:
        expected["labels"] = ((batch, tokens), "int64")
    known = {tap.name: (shape_of(tap, plan, batch, tokens), plan.dtype) for tap in taps.section_taps(section, plan.targets)}
    if "labels" not in expected:
        known.pop("loss", None)
    tables = {tap.name: (shape_of(tap, plan, batch, tokens), plan.dtype) for tap in taps.embedding_taps() if tap.name in ROPE_TABLES}
    for name in tensors:
        kind, _, own = name.partition(".")
        if kind == "bar" and own in known:
            expected[name] = known[own]
        if kind == "override" and own in known | (tables if section not in (EMBEDDING, HEAD) else {}):
            expected[name] = (known | tables)[own]
    require(expected, tensors, f"block {section}", exact=True)
    if "labels" in expected:
        _require_labels(plan.layout, tensors["labels"])
    return batch, tokens


def _sizes(plan: GraphPlan) -> dict[str, int]:
    layout = plan.layout
    return {
        "D": layout.hidden_size, "V": layout.vocab_size, "F": layout.intermediate_size, "H": layout.num_attention_heads,
        "K": layout.num_key_value_heads, "E": layout.head_dim, "Q": layout.num_attention_heads * layout.head_dim,
        "N": layout.num_key_value_heads * layout.head_dim, "R": plan.lora.rank,
    }  # fmt: skip
