"""A model and an adapter from disk, held on a device: what a request names that opens a model of its own.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor

from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING
from stacks.tinygrad_lora.host import rounded, to_device
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models.build import build
from stacks.tinygrad_lora.models.section import PLACES, TOKENS, Hook, Model
from stacks.tinygrad_lora.weights import Weights
from stacks.tinygrad_lora.widen import inside


@dataclass(frozen=True, kw_only=True)
class Held:
    """A graph whose weights are on a device.

    Attributes:
        tensors: section -> weights, adapter and scalars, by their own names.
        embeddings: embedding [V, D], and GPT-2's position_embedding [P, D], float32, on the host.
    """

    plan: GraphPlan
    device: str
    model: Model
    tensors: Mapping[str, Mapping[str, Tensor]]
    embeddings: Mapping[str, np.ndarray]

    def rows(self, ids_BT: np.ndarray, positions_BT: np.ndarray) -> dict[str, np.ndarray]:
        """What `Model.embed` takes, in the plan's dtype."""
        found = {TOKENS: self.embeddings["embedding"][ids_BT]}
        if "position_embedding" in self.embeddings:
            found[PLACES] = self.embeddings["position_embedding"][positions_BT]
        return {name: rounded(rows, self.plan.dtype) for name, rows in found.items()}

    def linears(self, section: str, hook: Hook) -> Linears:
        """A section's linears."""
        return Linears(tensors=self.tensors[section], out_features=self.model.out_features, block_size=None, hook=hook)


def hold(
    plan: GraphPlan, source: Weights, adapter: Mapping[str, np.ndarray], device: str, *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Held:  # fmt: skip
    """Puts a plan's weights and its adapter on a device, one section after the other.

    Args:
        plan: without the path nf4_linear: a token at a time, codes would be unpacked for each anew.
        adapter: PATH.lora_a [R, I] and PATH.lora_b [O, R], float32; a linear that it lacks has none.
        report: told how many sections are there, and of how many.

    Raises: as `stacks.tinygrad_lora.weights.Weights.section`.
    """
    model, held = build(plan), {}
    sections = [section for section in plan.held if section != EMBEDDING]
    for done, section in enumerate(sections):
        report(done, len(sections))
        prefix = f"{section}."
        arrays = {name: np.array([value]) for name, value in model.scalars(section).items()}
        arrays |= {name.removeprefix(prefix): matrix for name, matrix in adapter.items() if name.startswith(prefix)}
        own = {name: to_device(array.astype(inside(plan.dtype)), device) for name, array in arrays.items()}
        held[section] = source.section(section) | own
    report(len(sections), len(sections))
    return Held(plan=plan, device=device, model=model, tensors=held, embeddings=source.embeddings())
