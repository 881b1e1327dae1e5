"""The requests on a whole graph: `open`, `state`, `forward`, `gradients`, `block`; what they carry and what they answer.

`open` gives a stack a plan, the weights and the adapter; the others ask of the graph that is open, and name it, so that no
answer comes from another one. Tensors by name:

    embedding  final_norm  lm_head (untied)  layers.0.attention_norm  layers.0.q_proj  layers.0.q_proj.bias  ...     weights, float32
    embedding  layers.0.o_proj  layers.1.o_proj  ...                                                              of the proxy graph
    layers.0.q_proj.lora_a [R, in]  layers.0.q_proj.lora_b [out, R]  ...  lm_head.lora_a (proxy)  ...             adapter, float32

A stack widens them to the plan's dtype, exactly (in bfloat16 it rounds the weights). A batch is `ids`, `labels` where the loss is
wanted, and `positions` and `segments` where sequences are packed or padded. `block` asks of one section alone, on given inputs:

    input               the residual stream that enters (`ids` in the section `embedding`, `labels` too in `head`)
    positions segments  as in a batch, where the section depends on them
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

from contract.data import row
from contract.data.batches import PADDING
from contract.model.layout import Layout
from contract.model.weights import weights as model_weights
from contract.worker import taps
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, LM_HEAD, MIDDLE, PLACED, Tap

IGNORE_INDEX = row.IGNORE_INDEX
"""The label of a token that carries no loss."""

POSITIONS, SEGMENTS = "positions", "segments"
"""Tensors beside ids, int64 [B, T] as contract/data/batches.py has them; without them positions count from 0, and all is one segment."""

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
    layout, held = plan.layout, set(plan.held)
    if plan.graph == "qlora_proxy_v1":
        quantized = [f"{section}.{MIDDLE}" for section in plan.held if section not in (EMBEDDING, HEAD)]
        expected: Expected = dict.fromkeys(quantized, (layout.widths[MIDDLE], "float32"))
        if held & {EMBEDDING, HEAD}:
            expected["embedding"] = ((layout.vocab_size, layout.hidden_size), "float32")
        quantized += [LM_HEAD] if HEAD in held else []
    else:
        needed = [weight for weight in model_weights(layout) if _sections_of(weight.name, layout) & held]
        expected = {weight.name: (weight.shape, "float32") for weight in needed}
        quantized = [name for name in expected if name.rpartition(".")[2] in layout.linears]
    if plan.base is not None and plan.base.offsets_given:
        expected |= {f"{name}.offset": ((), "float32") for name in quantized}
    return expected


def adapter(plan: GraphPlan) -> Expected:
    """The adapter matrices of the plan's sections."""
    return {name: it for section in plan.held for name, it in section_adapter(plan, section).items()}


def section_adapter(plan: GraphPlan, section: str) -> Expected:
    """Those of one section."""
    layout, widths = plan.layout, plan.layout.widths
    if section in (EMBEDDING, HEAD):
        widths = {LM_HEAD: (layout.vocab_size, layout.hidden_size)} if section == HEAD else {}
    shapes: Expected = {}
    for name, (out_features, in_features) in widths.items():
        if name in plan.targets:
            path = taps.prefix(section) + name
            rank = plan.lora.rank_of(path)
            shapes[f"{path}.lora_a"] = ((rank, in_features), "float32")
            shapes[f"{path}.lora_b"] = ((out_features, rank), "float32")
    return shapes


def _sections_of(weight: str, layout: Layout) -> set[str]:
    """The sections that need a weight."""
    if weight.startswith("layers."):
        return {weight[: weight.index(".", len("layers."))]}
    if weight == "embedding":
        return {EMBEDDING, HEAD} if layout.tie_word_embeddings else {EMBEDDING}
    return {EMBEDDING} if weight == "position_embedding" else {HEAD}


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


# What the others carry and answer


def require_batch(
    plan: GraphPlan,
    ids: np.ndarray,
    labels: np.ndarray | None,
    positions: np.ndarray | None = None,
    segments: np.ndarray | None = None,
) -> None:
    """Holds a batch against the layout.

    Raises:
        Invalid: shapes or dtypes that are not int64 [B, T], an id or label outside of the vocabulary, a token that stands where the model
            has no position, labels of which none counts, or one that counts and whose predecessor is of another segment.
    """
    layout = plan.layout
    if ids.ndim != 2 or ids.dtype != np.int64 or ids.size == 0:
        raise Invalid(f"ids are {ids.dtype.name}{list(ids.shape)}, must be int64 [sequences, tokens], at least one of each")
    for name, tensor in (("labels", labels), (POSITIONS, positions), (SEGMENTS, segments)):
        if tensor is not None and (tensor.shape != ids.shape or tensor.dtype != np.int64):
            raise Invalid(f"{name} are {tensor.dtype.name}{list(tensor.shape)}, must be int64{list(ids.shape)}, as ids")
    _require_places(layout, ids.shape[1], positions, segments)
    if ids.min() < 0 or ids.max() >= layout.vocab_size:
        raise Invalid(f"ids lie in {ids.min()} .. {ids.max()}, allowed: 0 .. {layout.vocab_size - 1}; is it this model's tokenizer?")
    if labels is not None:
        _require_labels(layout, labels, segments)


def _require_places(layout: Layout, tokens: int, positions: np.ndarray | None, segments: np.ndarray | None) -> None:
    most = layout.max_position_embeddings
    if positions is None and tokens > most:
        raise Invalid(f"{tokens} tokens a sequence, allowed: max_position_embeddings = {most}; cut them")
    if positions is not None and (positions.min() < 0 or positions.max() >= most):
        raise Invalid(
            f"positions lie in {positions.min()} .. {positions.max()}, allowed: 0 .. {most - 1} (max_position_embeddings = {most}); "
            "count them from 0 in each segment"
        )
    if segments is not None and segments.min() < PADDING:
        raise Invalid(f"segments has {segments.min()}, allowed: 0 and more, or {PADDING} for padding")


def _require_labels(layout: Layout, labels: np.ndarray, segments: np.ndarray | None) -> None:
    counted = labels[labels != IGNORE_INDEX]
    if counted.size and (counted.min() < 0 or counted.max() >= layout.vocab_size):
        raise Invalid(f"labels lie in {counted.min()} .. {counted.max()}, allowed: 0 .. {layout.vocab_size - 1}, or {IGNORE_INDEX}")
    counts = labels[:, 1:] != IGNORE_INDEX
    if not counts.any():
        raise Invalid(f"no label after the first token of a sequence counts (all are {IGNORE_INDEX}), so the mean is over nothing")
    if segments is None:
        return
    strange = np.argwhere(counts & ((segments[:, 1:] != segments[:, :-1]) | (segments[:, 1:] == PADDING)))
    if len(strange):
        sequence, before = strange[0]
        raise Invalid(
            f"labels[{sequence}, {before + 1}] counts, and its token is padding or the first one of its segment, which nothing predicts; "
            f"set it to {IGNORE_INDEX}"
        )


def dtype_of(plan: GraphPlan, tap: str) -> str:
    """A tap's dtype: the plan's, but for the loss, which is never narrower than float32."""
    return "float32" if plan.dtype == "bfloat16" and tap == "loss" else plan.dtype


def shape_of(section: str, tap: Tap, plan: GraphPlan, batch: int, tokens: int, *, positions: bool = False) -> tuple[int, ...]:
    """A tap's shape.

    positions: the request gives them, so that what depends on them alone has a leading dimension B.
    """
    layout = plan.layout
    sizes = {
        "B": batch, "T": tokens, "S": tokens, "D": layout.hidden_size, "V": layout.vocab_size, "F": layout.intermediate_size,
        "H": layout.num_attention_heads, "K": layout.num_key_value_heads, "E": layout.head_dim,
        "Q": layout.num_attention_heads * layout.head_dim, "N": layout.num_key_value_heads * layout.head_dim,
        "R": plan.lora.rank_of(taps.prefix(section) + tap.name.partition(".")[0]),
    }  # fmt: skip
    dims = f"B{tap.dims}" if positions and tap.name in PLACED else tap.dims
    return tuple(sizes[letter] for letter in dims)


def tap_shapes(plan: GraphPlan, batch: int, tokens: int, *, positions: bool = False) -> Expected:
    """Every tap of the whole graph by its full name."""
    return {
        taps.prefix(section) + tap.name: (shape_of(section, tap, plan, batch, tokens, positions=positions), dtype_of(plan, tap.name))
        for section in taps.sections(plan.blocks)
        for tap in taps.section_taps(plan, section)
    }


def expected_graph_answer(
    plan: GraphPlan, wanted: Iterable[str], batch: int, tokens: int, *, gradients: bool, positions: bool = False
) -> Expected:
    """What `forward` and `gradients` answer: the wanted taps, and `grad.NAME` of each adapter matrix.

    Raises:
        Invalid: there is no tap of that name, or none with the plan's paths.
    """
    shapes, answer = tap_shapes(plan, batch, tokens, positions=positions), {}
    for name in wanted:
        if name not in shapes:
            _require_held(plan, name)
            raise Invalid(f"there is no tap {name!r}; allowed: {', '.join(list(shapes)[:6])} ..., see contract/worker/taps.py")
        answer[name] = shapes[name]
    return answer | (_gradients(plan, adapter(plan)) if gradients else {})


def expected_block_answer(plan: GraphPlan, section: str, given: Iterable[str], batch: int, tokens: int) -> Expected:
    """What `block` answers, by its tensors' names."""
    names = set(given)
    known = _section_shapes(plan, section, names, batch, tokens)
    answer = dict(known)
    if any(name.startswith("bar.") for name in names):
        if section != EMBEDDING:
            answer["grad.input"] = ((batch, tokens, plan.layout.hidden_size), plan.dtype)
        for name in sorted(names):
            own = name.removeprefix("override.")
            if name.startswith("override.") and own not in ROPE_TABLES:
                answer[f"grad.{own}"] = known[own]
        start = taps.prefix(section)
        own_names = {name.removeprefix(start): it for name, it in section_adapter(plan, section).items()}
        answer |= _gradients(plan, own_names)
    return answer


def require_block(plan: GraphPlan, section: str, tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Holds the tensors of a `block` request against the section; its batch and tokens.

    Raises:
        Invalid: a section that is not open, a tensor that is missing, unknown, or of the wrong shape or dtype, more tokens than
            positions, or positions, segments and labels as `require_batch` refuses them.
    """
    if section not in plan.held:
        raise Invalid(f"section {section!r} is not open; open: {', '.join(plan.held[:4])} ...")
    first = "ids" if section == EMBEDDING else "input"
    if first not in tensors or tensors[first].ndim != (2 if section == EMBEDDING else 3):
        raise Invalid(f"block {section}: {first} is missing, or not [sequences, tokens{'' if section == EMBEDDING else ', hidden_size'}]")
    batch, tokens = tensors[first].shape[:2]
    most = plan.layout.max_position_embeddings
    if batch == 0 or tokens == 0 or (tokens > most and POSITIONS not in tensors):
        raise Invalid(
            f"block {section}: {first} has {batch} sequences of {tokens} tokens, allowed: at least one of each, and "
            f"max_position_embeddings = {most} tokens at most"
        )
    if section == EMBEDDING:
        require_batch(plan, tensors["ids"], None, tensors.get(POSITIONS))
    require(_block_tensors(plan, section, tensors, batch, tokens), tensors, f"block {section}", exact=True)
    _require_places(plan.layout, tokens, tensors.get(POSITIONS), tensors.get(SEGMENTS))
    if "labels" in tensors:
        _require_labels(plan.layout, tensors["labels"], tensors.get(SEGMENTS))
    return batch, tokens


def _block_tensors(plan: GraphPlan, section: str, tensors: Iterable[str], batch: int, tokens: int) -> Expected:
    """What a `block` request that names these tensors must carry, as far as there is something of that name."""
    names, rectangle = set(tensors), ((batch, tokens), "int64")
    expected: Expected = {"ids": rectangle} if section == EMBEDDING else {"input": ((batch, tokens, plan.layout.hidden_size), plan.dtype)}
    inner = section not in (EMBEDDING, HEAD)
    places = {EMBEDDING: (POSITIONS,), HEAD: ("labels", SEGMENTS)}.get(section, (POSITIONS, SEGMENTS))
    expected |= {name: rectangle for name in places if name in names}
    known = _section_shapes(plan, section, names, batch, tokens)
    tables = _section_shapes(plan, EMBEDDING, names, batch, tokens)
    known |= {f"table {name}": tables[name] for name in ROPE_TABLES if inner and name in tables}
    for name in names:
        kind, _, own = name.partition(".")
        if kind in ("bar", "override") and own in known:
            expected[name] = known[own]
        if kind == "override" and f"table {own}" in known:
            expected[name] = known[f"table {own}"]
    return expected


def _section_shapes(plan: GraphPlan, section: str, given: Iterable[str], batch: int, tokens: int) -> Expected:
    """The taps of a section on a request that names these tensors, by their own names."""
    names = set(given)
    return {
        tap.name: (shape_of(section, tap, plan, batch, tokens, positions=POSITIONS in names), dtype_of(plan, tap.name))
        for tap in taps.section_taps(plan, section)
        if tap.name != "loss" or "labels" in names
    }


def _gradients(plan: GraphPlan, matrices: Expected) -> Expected:
    """In bfloat16 they are float32, as the matrices are."""
    dtype = "float32" if plan.dtype == "bfloat16" else plan.dtype
    return {f"grad.{name}": (shape, dtype) for name, (shape, _) in matrices.items()}


def _require_held(plan: GraphPlan, name: str) -> None:
    """Raises Invalid for a tap that a path of the plan leaves out."""
    path = taps.without(plan, name)
    if path is not None:
        raise Invalid(f"the path {path} never holds the tap {name}; leave it out, or open the graph without this path")
