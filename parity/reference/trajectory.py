"""One optimiser step of a run in float64: micro-batches through the graph, their gradients' sum, clipping, AdamW.

The oracle that training is held against: it takes the state before a step and gives what comes of it, and, shown a Noise, how rounding
errors of all operations reach loss, norm, m, v and weights (parity/judge/perturb.py). Formulas: graph.py, graph_optimizer.py.

Legend: P runs, K micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from contract.training.trainer import TrainerState
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan
from contract.worker.taps import prefix
from parity.reference.graph import Batch
from parity.reference.graph_optimizer import AdamW, Settings, clipped
from parity.reference.proxy import oracle
from parity.reference.rounding import Exact, Noise, Size, rounded, summed, together
from parity.reference.tape import Kind

LOSS, NORM = "loss", "grad_norm"


def take(
    plan: GraphPlan, weight: Callable[[str], np.ndarray], before: TrainerState, batches: Sequence[Batch], settings: Settings, *,
    noise: Noise | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """loss, grad_norm [P]; adapter.NAME, m.NAME, v.NAME [P, X] after the step, from the state before it.

    loss = (sum over micro-batches of the sum over their supervised tokens) / (the step's supervised tokens), and so its gradient.
    """
    noise = noise or Exact()
    shared: dict[str, np.ndarray] = {}
    parts = [_of_batch(plan, weight, before.adapter, batch, _Part(noise, f"{k}", shared)) for k, batch in enumerate(batches)]
    counts = [float(np.count_nonzero(batch.labels[:, 1:] != IGNORE_INDEX)) for batch in batches]
    whole = {name: _mean([part[name] for part in parts], counts, name, noise) for name in (LOSS, *before.adapter)}
    loss_P = whole.pop(LOSS)
    norm_P, gradients = clipped(whole, settings.max_norm, noise)
    optimizer, after = AdamW(settings, before.updates, noise), {LOSS: loss_P, NORM: norm_P}
    for name, gradient in gradients.items():
        weight_X, m_X, v_X = (part[name].astype(np.float64)[None] for part in (before.adapter, before.m, before.v))
        stepped = optimizer.step(name, weight_X, gradient, m_X, v_X)
        after |= {f"{part}.{name}": value for part, value in stepped.items()}
    return after


def _of_batch(
    plan: GraphPlan, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray], batch: Batch, noise: Noise
) -> dict[str, np.ndarray]:
    """A micro-batch's mean loss and its gradients."""
    found: dict[str, np.ndarray] = {}

    def see(section: str, kind: Kind, name: str, value: np.ndarray) -> None:
        full = prefix(section) + name
        if (kind == "grad" and full in adapter) or (kind == "tap" and full == LOSS):
            found[full] = value

    oracle(plan, weight, adapter, noise=noise).walk(batch, see)
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
    """A Noise whose sites are one micro-batch's own, but for the graph's constants, which a run draws once for all of them."""

    def __init__(self, noise: Noise, name: str, shared: dict[str, np.ndarray]) -> None:
        self._noise, self._name, self._shared = noise, name, shared
        self.ulp, self.mixed = noise.ulp, noise.mixed

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        if not site.startswith("constant/"):
            return self._noise(f"{self._name}/{site}", value, size)
        if site not in self._shared:
            self._shared[site] = self._noise(site, value, size)
        return self._shared[site]
