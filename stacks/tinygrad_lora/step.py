"""A micro-batch through the whole graph as one sequence of kernels: loss, gradients, and the update that ends a step.

Nothing here is captured or kept between calls but what `Adapted` holds; stacks/tinygrad_lora/replay.py says what a captured function asks
for. Every section is computed before the next one is scheduled: identical ones are then scheduled once.

Shape suffixes: B sequences, T tokens, M = B T, D hidden_size, N rows that carry loss, C rows of a chunk of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tinygrad import Tensor

from contract.worker import taps
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, LM_HEAD
from stacks.tinygrad_lora import loss, optim
from stacks.tinygrad_lora.chain import Hook, Keep, Section, backward
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models.section import Model, Pass

Tensors = Mapping[str, Tensor]
SEEN, KEEP, INDEX, PLACE, LABEL, COUNTED = "seen.", "keep.", "index", "place", "label", "counted"
TOKENS_OF_STEP, FIRST, MAX_NORM, KEPT_SHARE = "tokens", "first", "max_norm", "kept_share"
"""Names of what a micro-batch brings; stacks/tinygrad_lora/buckets.py says what each one is."""


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A graph on its device.

    Attributes:
        held: section -> its weights and scalars by their own names.
        adapter: by the full names of contract.worker.graph; m, v and sums, the gradients of a step's earlier micro-batches, likewise.
        chunk: C.
    """

    plan: GraphPlan
    model: Model
    held: Mapping[str, Tensors]
    adapter: Tensors
    m: Tensors
    v: Tensors
    sums: Tensors
    chunk: int

    def own(self, section: str, named: Tensors) -> dict[str, Tensor]:
        """What is a section's, by its own names; the head's is all lm_head's."""
        prefix = taps.prefix(section)
        start = prefix or LM_HEAD
        return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(start)}

    @property
    def sections(self) -> tuple[str, ...]:
        """The blocks, in order."""
        return tuple(section for section in self.plan.held if section not in (EMBEDDING, HEAD))


def loss_sum(graph: Adapted, given: Tensors) -> dict[str, Tensor]:
    """`loss`, the sum of -log softmax over the rows that count, of shape [1]."""
    x_BTD = _embedded(graph, given)
    for section in graph.sections:
        x_BTD = _block(graph, section, given)(x_BTD, Keep()).contiguous().realize()
    return {"loss": _total([chunk.loss.realize() for chunk in _chunks(graph, x_BTD, given)])}


def accumulate(graph: Adapted, given: Tensors) -> dict[str, Tensor]:
    """Adds a micro-batch's gradients to the step's; answers `loss`, its sum, and `norm`, that of the step's gradient so far."""
    gradients = _Gradients(graph, given)
    return {"loss": _through(graph, given, gradients), "norm": gradients.norm()}


def finish(graph: Adapted, given: Tensors) -> dict[str, Tensor]:
    """`accumulate`, and the step's update, unless loss or norm is not finite: then adapter, m and v stay as they are."""
    gradients = _Gradients(graph, given)
    total_1 = _through(graph, given, gradients)
    norm_1 = gradients.norm()
    scale_1 = (optim.clip_scale(norm_1, given[MAX_NORM]) / given[TOKENS_OF_STEP]).contiguous()
    finite_1 = ((norm_1 < float("inf")) & (total_1 < float("inf"))).contiguous()
    Tensor.realize(total_1, norm_1, scale_1, finite_1)
    for section in (*graph.sections, HEAD):
        _update(graph, section, gradients.found, scale_1, finite_1, given)
    return {"loss": total_1, "norm": norm_1}


# Gradients


class _Gradients:
    """A step's gradients of the loss' sum, section by section; with accumulation they are added to those of earlier micro-batches."""

    def __init__(self, graph: Adapted, given: Tensors) -> None:
        self._graph, self._given = graph, given
        self._squares: list[Tensor] = []
        self.found: dict[str, Tensor] = {}

    def take(self, section: str, gradients: Tensors, *beside: Tensor) -> None:
        """Computes those of a section, by its own names, and what comes beside them."""
        sums, prefix, taken = self._graph.own(section, self._graph.sums), taps.prefix(section), {}
        for name, one in gradients.items():
            taken[name] = sums[name].assign(self._given[FIRST].where(one, sums[name] + one)) if sums else one.contiguous()
        if taken:
            over_tokens = [one / self._given[TOKENS_OF_STEP] for one in taken.values()]
            self._squares.append(optim.square_sum(over_tokens).contiguous())
            beside = (*beside, self._squares[-1])
        Tensor.realize(*taken.values(), *beside)
        self.found |= {prefix + name: one for name, one in taken.items()}

    def norm(self) -> Tensor:
        """That of all, over the step's tokens, of shape [1]."""
        return _total(self._squares).sqrt().contiguous()


def _through(graph: Adapted, given: Tensors, gradients: _Gradients) -> Tensor:
    """The loss' sum; forward, and back."""
    x_BTD, inputs, kept = _embedded(graph, given), {}, {}
    for section in graph.sections:
        inputs[section], hook = x_BTD, Keep()
        x_BTD = _block(graph, section, given)(x_BTD, hook).contiguous()
        kept[section] = hook.kept
        Tensor.realize(x_BTD, *hook.kept.values())
    total_1, bar_BTD = _head(graph, x_BTD, given, gradients)
    for section in reversed(graph.sections):
        function, own, of_input = _block(graph, section, given), graph.own(section, graph.adapter), section != graph.sections[0]
        into_BTD, found = backward(function, inputs.pop(section), kept.pop(section), bar_BTD, own, of_input=of_input)
        if into_BTD is not None:
            bar_BTD = into_BTD.contiguous()
        gradients.take(section, found, *([] if into_BTD is None else [bar_BTD]))
    return total_1


def _head(graph: Adapted, x_BTD: Tensor, given: Tensors, gradients: _Gradients) -> tuple[Tensor, Tensor]:
    """The loss' sum, and the cotangent of what enters the head."""
    own = graph.own(HEAD, graph.adapter)
    losses, bars, total = [], [], dict[str, Tensor]()
    for chunk in _chunks(graph, x_BTD, given):
        bar_CV = loss.chunk_bar(chunk.logits, chunk.label, chunk.counted).contiguous()
        bar_1CD, found = backward(chunk.section, chunk.rows, {}, bar_CV, own, of_input=True)
        assert bar_1CD is not None, "the rows enter the head"
        total = {name: (total[name] + one if name in total else one).contiguous() for name, one in found.items()}
        bars.append(bar_1CD.reshape(graph.chunk, -1).contiguous())
        losses.append(chunk.loss)
        Tensor.realize(bars[-1], losses[-1], *total.values())
    rows_ND, place_M1 = bars[0].cat(*bars[1:]).contiguous(), given[PLACE].reshape(-1, 1)
    bar_MD = (place_M1 < 0).where(0, rows_ND[(place_M1 < 0).where(0, place_M1).reshape(-1)])
    bar_BTD = bar_MD.reshape(x_BTD.shape).contiguous()
    gradients.take(HEAD, total, bar_BTD)
    return _total(losses), bar_BTD


def _update(graph: Adapted, section: str, gradients: Tensors, scale_1: Tensor, finite_1: Tensor, given: Tensors) -> None:
    """Clipping and AdamW of one section's matrices."""
    prefix, changed = taps.prefix(section), []
    for name, gradient in graph.own(section, gradients).items():
        weight, m, v = (part[prefix + name] for part in (graph.adapter, graph.m, graph.v))
        m_next, v_next = optim.adamw_moments(gradient * scale_1, m, v, given)
        m, v = m.assign(finite_1.where(m_next, m)), v.assign(finite_1.where(v_next, v))
        weight.assign(finite_1.where(optim.adamw_weight(weight, m, v, given), weight))
        changed += [m, v, weight]
    if changed:
        Tensor.realize(*changed)


# Sections


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Some rows that carry loss, and what the head makes of them; nothing is computed but the rows."""

    rows: Tensor
    label: Tensor
    counted: Tensor
    section: Section
    logits: Tensor

    @property
    def loss(self) -> Tensor:
        return loss.chunk_sum(self.logits, self.label, self.counted).contiguous()


def _chunks(graph: Adapted, x_BTD: Tensor, given: Tensors) -> list[_Chunk]:
    """The rows that carry loss, in chunks: logits of all tokens are never there at once."""
    x_MD, C, found = x_BTD.reshape(-1, x_BTD.shape[-1]), graph.chunk, []
    for start in range(0, int(given[INDEX].shape[0]), C):
        part = slice(start, start + C)
        rows_1CD = x_MD[given[INDEX][part]].reshape(1, C, -1).contiguous().realize()
        masks = {name: mask[:, part] for name, mask in given.items() if name == f"{KEEP}{LM_HEAD}"}
        section = _last(graph, {**given, **masks})
        logits_CV = section(rows_1CD, Keep()).contiguous()
        found.append(_Chunk(rows=rows_1CD, label=given[LABEL][part], counted=given[COUNTED][part], section=section, logits=logits_CV))
    return found


def _embedded(graph: Adapted, given: Tensors) -> Tensor:
    return graph.model.embed(given, Keep()).contiguous().realize()


def _block(graph: Adapted, section: str, given: Tensors) -> Section:
    layer, tensors = int(section.removeprefix("layers.")), _tensors(graph, section, given)
    shared = Pass(seen=partial(_seen, graph, given), cos=given.get("rope.cos"), sin=given.get("rope.sin"))

    def function(x_BTD: Tensor, hook: Hook) -> Tensor:
        return graph.model.block(x_BTD, tensors, _linears(graph, tensors, hook), hook, layer, shared)

    return function


def _last(graph: Adapted, given: Tensors) -> Section:
    tensors = _tensors(graph, HEAD, given)

    def function(x_1CD: Tensor, hook: Hook) -> Tensor:
        finished_1CD = graph.model.finish(x_1CD, tensors, hook)
        logits_1CV = graph.model.project(finished_1CD, tensors, _linears(graph, tensors, hook), hook)
        return logits_1CV.reshape(logits_1CV.shape[1:])

    return function


def _tensors(graph: Adapted, section: str, given: Tensors) -> dict[str, Tensor]:
    """A section's tensors by their own names: weights, scalars, adapter, and the masks of a micro-batch."""
    masks = graph.own(section, {name.removeprefix(KEEP): mask for name, mask in given.items() if name.startswith(KEEP)})
    share = {KEPT_SHARE: given[KEPT_SHARE]} if masks else {}
    return {**graph.held[section], **graph.own(section, graph.adapter), **{f"{name}.keep": mask for name, mask in masks.items()}, **share}


def _seen(graph: Adapted, given: Tensors, layer: int) -> Tensor:
    return given[f"{SEEN}{graph.plan.layout.window(layer)}"]


def _linears(graph: Adapted, tensors: Tensors, hook: Hook) -> Linears:
    plan = graph.plan
    block_size = plan.base.block_size if plan.base is not None and "nf4_linear" in plan.paths else None
    return Linears(tensors=tensors, out_features=graph.model.out_features, block_size=block_size, hook=hook)


def _total(parts: list[Tensor]) -> Tensor:
    """Their sum, of shape [1]."""
    return parts[0].usum(*parts[1:]).contiguous()
