"""Optimiser steps of a run in float64: micro-batches through the graph, their gradients' sum, clipping, AdamW.

The oracle that training is held against: it takes the state before a step and gives what comes of it, and, shown a Noise, how rounding
errors of all operations reach loss, norm, m, v and weights (parity/judge/perturb.py). Formulas: graph.py, graph_optimizer.py.

Legend: P runs, K micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contract.training.trainer import TrainerState
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan
from contract.worker.taps import prefix
from parity.reference.graph import Batch
from parity.reference.graph_linear import Dropout
from parity.reference.graph_optimizer import AdamW, Settings, clipped
from parity.reference.proxy import oracle
from parity.reference.rounding import Exact, Noise, Size, rounded, summed, together
from parity.reference.tape import Kind

LOSS, NORM = "loss", "grad_norm"
PARTS = ("adapter", "m", "v")
"""Of a state: adapter.NAME, m.NAME, v.NAME."""

Weight = Callable[[str], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A batch, and what dropout keeps of it; None without."""

    batch: Batch
    dropout: Dropout | None = None

    @property
    def tokens(self) -> float:
        """Supervised ones."""
        return float(np.count_nonzero(self.batch.labels[:, 1:] != IGNORE_INDEX))


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step to take: its micro-batches, none where no row has a token to learn, and its numbers."""

    batches: Sequence[MicroBatch]
    settings: Settings


def take(plan: GraphPlan, weight: Weight, before: TrainerState, step: Taken, *, noise: Noise | None = None) -> dict[str, np.ndarray]:
    """loss, grad_norm [P]; adapter.NAME, m.NAME, v.NAME [P, X] after the step, from the state before it.

    loss = (sum over micro-batches of the sum over their supervised tokens) / (the step's supervised tokens), and so its gradient. Without
    a micro-batch there is no loss (NaN), no gradient, and the state stays.

    Args:
        before: matrices [X], or [P, X] where each run has its own.
    """
    noise = noise or Exact()
    if not step.batches:
        kept = {f"{part}.{name}": _runs(matrix) for part in PARTS for name, matrix in getattr(before, part).items()}
        return {LOSS: np.full(1, np.nan), NORM: np.zeros(1), **kept}
    shared: dict[str, np.ndarray] = {}
    parts = [_of_batch(plan, weight, before.adapter, batch, _Part(noise, f"{k}", shared)) for k, batch in enumerate(step.batches)]
    counts = [batch.tokens for batch in step.batches]
    whole = {name: _mean([part[name] for part in parts], counts, name, noise) for name in (LOSS, *before.adapter)}
    loss_P = whole.pop(LOSS)
    norm_P, gradients = clipped(whole, step.settings.max_norm, noise)
    optimizer, after = AdamW(step.settings, before.updates, noise), {LOSS: loss_P, NORM: norm_P}
    for name, gradient in gradients.items():
        weight_X, m_X, v_X = (_runs(part[name]) for part in (before.adapter, before.m, before.v))
        stepped = optimizer.step(name, weight_X, gradient, m_X, v_X)
        after |= {f"{part}.{name}": value for part, value in stepped.items()}
    return after


def take_all(
    plan: GraphPlan, weight: Weight, before: TrainerState, steps: Sequence[Taken], *, noise: Noise | None = None
) -> dict[str, np.ndarray]:
    """As `take`, of steps each of which starts from what the one before gave: `stepN.loss` and `stepN.grad_norm` of each, N from 0.

    adapter.NAME, m.NAME and v.NAME are those after the last one. A perturbed run goes its own way.
    """
    found, shared, state = dict[str, np.ndarray](), dict[str, np.ndarray](), before
    for number, step in enumerate(steps):
        after = take(plan, weight, state, step, noise=_Part(noise or Exact(), f"step{number}", shared))
        found |= {f"step{number}.{name}": after.pop(name) for name in (LOSS, NORM)}
        adapter, m, v = ({name: after[f"{part}.{name}"] for name in before.adapter} for part in PARTS)
        state = TrainerState(adapter=adapter, m=m, v=v, updates=state.updates + bool(step.batches))
    return found | {f"{part}.{name}": matrix for part in PARTS for name, matrix in getattr(state, part).items()}


def _runs(matrix: np.ndarray) -> np.ndarray:
    """A matrix with its axis of runs."""
    wide = matrix.astype(np.float64)
    return wide if wide.ndim > 2 else wide[None]


def _of_batch(plan: GraphPlan, weight: Weight, adapter: Mapping[str, np.ndarray], micro: MicroBatch, noise: Noise) -> dict[str, np.ndarray]:
    """A micro-batch's mean loss and its gradients."""
    found: dict[str, np.ndarray] = {}
    # of a runs' axis of one the graph is told nothing: a product of all rows at once is the faster one
    own = {name: matrix[0] if matrix.ndim > 2 and len(matrix) == 1 else matrix for name, matrix in adapter.items()}

    def see(section: str, kind: Kind, name: str, value: np.ndarray) -> None:
        full = prefix(section) + name
        if (kind == "grad" and full in adapter) or (kind == "tap" and full == LOSS):
            found[full] = value

    oracle(plan, weight, own, noise=noise, dropout=micro.dropout).walk(micro.batch, see)
    return found


def _mean(parts: Sequence[np.ndarray], counts: Sequence[float], name: str, noise: Noise) -> np.ndarray:
    """sum of count part / sum of counts; as a sum over micro-batches, and a quotient."""
    terms = [count * part for count, part in zip(counts, parts, strict=True)]
    total = sum(terms[1:], start=terms[0])

    def total_size() -> np.ndarray:
        squares = np.sum(np.stack([term * term for term in terms]), axis=0)
        return together(rounded(*terms), summed(total, squares, len(terms)))

    mean = noise(f"sum/{name}", total, total_size) / sum(counts)
    return noise(f"mean/{name}", mean, lambda: rounded(mean, mean))


class _Part:
    """A Noise whose sites are one micro-batch's or one step's own, but for the graph's constants, which a run draws once for all."""

    def __init__(self, noise: Noise, name: str, shared: dict[str, np.ndarray]) -> None:
        self._noise, self._name, self._shared = noise, name, shared
        self.ulp, self.mixed = noise.ulp, noise.mixed

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        if not site.startswith("constant/"):
            return self._noise(f"{self._name}/{site}", value, size)
        if site not in self._shared:
            self._shared[site] = self._noise(site, value, size)
        return self._shared[site]
