"""Laws of whole graphs: equations between a stack's own answers in float64, so that they see what two stacks have wrong alike.

Each law asks the same graph about a changed batch, adapter or plan, and says how the answer follows from that on the case as it is:
the same numbers where the arithmetic is the same, else within the threshold of question 1 (docs/theory.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contract.data.batches import PADDING
from contract.worker import taps
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan
from parity.checks.check import Arrays
from parity.checks.graph_case import GraphCase
from parity.reference.graph import Batch
from parity.reference.rounding import rounded, together

PADS = 3


@dataclass(frozen=True, kw_only=True)
class Law:
    """One law.

    changed: a case -> the cases to ask, beside the case itself
    sides:   (the case, its answer, the others' answers) -> what was answered and what must be equal to it, by the same names
    exact:   the same numbers; else within question 1's threshold of the case
    own:     (the case, the others' answers) -> name -> what the judge's own sums may err by in `sides`, row by row, in units of u
    """

    name: str
    changed: Callable[[GraphCase], Sequence[GraphCase]]
    sides: Callable[[GraphCase, Arrays, Sequence[Arrays]], tuple[Arrays, Arrays]]
    exact: bool = False
    own: Callable[[GraphCase, Sequence[Arrays]], Arrays] | None = None


# What changes


def _of_batch(case: GraphCase, **arrays: np.ndarray) -> GraphCase:
    return dataclasses.replace(case, batch=Batch(**{**case.batch.tensors(), **arrays}), _made={})


def _of_plan(case: GraphCase, plan: GraphPlan, adapter: Mapping[str, np.ndarray]) -> GraphCase:
    return dataclasses.replace(case, plan=plan, adapter=adapter, _made={})


def _rows_permuted(case: GraphCase) -> list[GraphCase]:
    return [_of_batch(case, ids=np.roll(case.batch.ids, 1, axis=0), labels=np.roll(case.batch.labels, 1, axis=0))]


def _future_changed(case: GraphCase) -> list[GraphCase]:
    ids = case.batch.ids.copy()
    ids[:, _now(case) :] = (ids[:, _now(case) :] + 1) % case.plan.layout.vocab_size
    return [_of_batch(case, ids=ids)]


def _now(case: GraphCase) -> int:
    """From here on tokens are the future."""
    return int(case.batch.ids.shape[1]) // 2


def _one_by_one(case: GraphCase) -> list[GraphCase]:
    batch = case.batch
    return [_of_batch(case, ids=batch.ids[one : one + 1], labels=batch.labels[one : one + 1]) for one in range(len(batch.ids))]


def _doubled_and_halved(case: GraphCase) -> list[GraphCase]:
    lora = case.plan.lora
    doubled = lora.model_copy(
        update={"alpha": 2 * lora.alpha, "alpha_pattern": {name: 2 * alpha for name, alpha in lora.alpha_pattern.items()}}
    )
    halved = {name: matrix / 2 if name.endswith("lora_b") else matrix for name, matrix in case.adapter.items()}
    return [_of_plan(case, case.plan.model_copy(update={"lora": doubled}), halved)]


def _fresh_and_base(case: GraphCase) -> list[GraphCase]:
    fresh = {name: np.zeros_like(matrix) if name.endswith("lora_b") else matrix for name, matrix in case.adapter.items()}
    lora = case.plan.lora.model_copy(update={"targets": (), "rank_pattern": {}, "alpha_pattern": {}})
    return [_of_plan(case, case.plan, fresh), _of_plan(case, case.plan.model_copy(update={"lora": lora}), {})]


def _padded(case: GraphCase, left: int, filling: int) -> GraphCase:
    """With PADS tokens of padding in each sequence, so many of them before its own."""
    ids, labels = case.batch.ids, case.batch.labels.copy()
    labels[:, 0] = IGNORE_INDEX  # what foretold nothing before may not count behind padding

    def wider(array: np.ndarray, value: int) -> np.ndarray:
        return np.pad(array, ((0, 0), (left, PADS - left)), constant_values=value)

    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return _of_batch(
        case, ids=wider(ids, filling), labels=wider(labels, IGNORE_INDEX), positions=wider(positions, 0),
        segments=wider(np.zeros_like(ids), PADDING),
    )  # fmt: skip


def _in_one_row(case: GraphCase) -> list[GraphCase]:
    """All sequences packed into one."""
    ids, labels = case.batch.ids, case.batch.labels.copy()
    labels[:, 0] = IGNORE_INDEX
    sequences, tokens = ids.shape
    places = np.tile(np.arange(tokens), sequences)[None], np.repeat(np.arange(sequences), tokens)[None]
    return [_of_batch(case, ids=ids.reshape(1, -1), labels=labels.reshape(1, -1), positions=places[0], segments=places[1])]


# What follows


def _unrolled(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    dims = _dims(case.plan)
    return {name: np.roll(array, -1, axis=0) if dims.get(name, "").startswith("B") else array for name, array in others[0].items()}, first


def _past(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    now, dims = _now(case), _dims(case.plan)

    def past(answer: Arrays) -> Arrays:
        found = {name: array for name, array in answer.items() if "T" in dims.get(name, "")}
        return {name: array[tuple(slice(now) if letter in "TS" else slice(None) for letter in dims[name])] for name, array in found.items()}

    return past(others[0]), past(first)


def _accumulated(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    """The mean of the sequences' means, each with the number of its labels that count."""
    terms = _terms(case, others)
    expected = {name: array for name, array in first.items() if name in terms}
    return {name: np.sum(parts, axis=0) / _counts(case).sum() for name, parts in terms.items()}, expected


def _terms(case: GraphCase, others: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Loss and gradients of the sequences, times the number of their labels that count: [sequences, ...]."""
    names = [name for name in others[0] if name == "loss" or name.startswith("grad.")]
    return {name: np.stack([count * one[name] for count, one in zip(_counts(case), others, strict=True)]) for name in names}


def _counts(case: GraphCase) -> np.ndarray:
    counts: np.ndarray = np.sum(case.batch.labels[:, 1:] != IGNORE_INDEX, axis=1)
    return counts


def _own_sums(case: GraphCase, others: Sequence[Arrays]) -> Arrays:
    """Each product by a count, the sums one after the other, and the quotient."""
    sizes, count = {}, _counts(case).sum()
    for name, parts in _terms(case, others).items():
        sums = np.cumsum(parts, axis=0)
        size = together(*(rounded(one / count) for one in (*parts, *sums[1:], sums[-1])))
        sizes[name] = size if size.ndim == 0 else np.linalg.norm(size, axis=-1)
    return sizes


def _halved_back(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    """B is halved, so is what it gives, and its gradient doubled."""

    def factor(name: str) -> float:
        if name.endswith("lora_bax"):
            return 2.0
        return 0.5 if name.startswith("grad.") and name.endswith("lora_b") else 1.0

    return {name: factor(name) * array for name, array in others[0].items()}, first


def _like_the_base(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    fresh, base = others
    return {name: array for name, array in fresh.items() if name in base}, base


def _unpadded(left: int) -> Callable[[GraphCase, Arrays, Sequence[Arrays]], tuple[Arrays, Arrays]]:
    def sides(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
        return _own_tokens(case, others[0], left), _comparable(case, first)

    return sides


def _whatever_fills(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    return _own_tokens(case, others[0], 1), _own_tokens(case, others[1], 1)


def _own_tokens(case: GraphCase, answer: Arrays, left: int) -> Arrays:
    """What is comparable, of the tokens that are no padding."""
    dims, tokens = _dims(case.plan), case.batch.ids.shape[1]
    found = _comparable(case, answer)
    return {
        name: array[tuple(slice(left, left + tokens) if letter == "T" else slice(None) for letter in dims.get(name, ""))]
        for name, array in found.items()
    }  # fmt: skip


def _unpacked(case: GraphCase, first: Arrays, others: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    """[1, B T, ...] as [B, T, ...], and [1, H, B T, E] as [B, H, T, E]."""
    dims, (sequences, tokens) = _dims(case.plan), case.batch.ids.shape

    def apart(name: str, array: np.ndarray) -> np.ndarray:
        if "T" not in dims.get(name, ""):
            return array
        axis = dims[name].index("T")
        split = array.reshape(*array.shape[:axis], sequences, tokens, *array.shape[axis + 1 :])
        return np.moveaxis(split, axis, 0)[:, 0]

    return {name: apart(name, array) for name, array in _comparable(case, others[0]).items()}, _comparable(case, first)


def _comparable(case: GraphCase, answer: Arrays) -> Arrays:
    """Loss, gradients, and what every token has of its own: no tables of positions, and nothing that has a place for each other token."""
    dims = _dims(case.plan)
    return {name: array for name, array in answer.items() if not dims.get(name) or (dims[name][0] == "B" and "S" not in dims[name])}


def _dims(plan: GraphPlan) -> dict[str, str]:
    """Each tap's dimensions by letter, by its full name."""
    return {
        taps.prefix(section) + tap.name: tap.dims
        for section in taps.sections(plan.layout.num_hidden_layers)
        for tap in taps.section_taps(plan, section)
    }


LAWS = (
    Law(name="sequences permuted", changed=_rows_permuted, sides=_unrolled),
    Law(name="another future", changed=_future_changed, sides=_past, exact=True),
    Law(name="sequences one by one", changed=_one_by_one, sides=_accumulated, own=_own_sums),
    Law(name="B = 0 is the base", changed=_fresh_and_base, sides=_like_the_base, exact=True),
    Law(name="alpha doubled, B halved", changed=_doubled_and_halved, sides=_halved_back, exact=True),
)
PACKED_LAWS = (
    Law(name="padded on the right", changed=lambda case: [_padded(case, 0, 0)], sides=_unpadded(0)),
    Law(name="padded on the left", changed=lambda case: [_padded(case, PADS, 0)], sides=_unpadded(PADS)),
    Law(name="other padding", changed=lambda case: [_padded(case, 1, 0), _padded(case, 1, 5)], sides=_whatever_fills, exact=True),
    Law(name="packed into one", changed=_in_one_row, sides=_unpacked),
)
