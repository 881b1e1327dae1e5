"""A stack that opens whole graphs, in this process: the float64 reference itself, with what a test changes in its plan or weights.

In float64 it differs from the reference by that change and by nothing else; in float32 every answer is rounded once more; in bfloat16
weights and adapter are rounded first, and each tap before it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from contract.model.layout import MODEL_TYPES
from contract.worker import graph, taps
from contract.worker.answers import Answer, RequestFailed
from contract.worker.capabilities import Graphs
from contract.worker.plan import GraphPlan, Lora, Nf4
from parity.checks import graph_draws as draws
from parity.checks.graph_case import GraphCase
from parity.checks.graph_layouts import OPTIONS, PLAIN, Recipe
from parity.checks.graph_sections import widened
from parity.reference.graph import Batch, Oracle
from parity.reference.rounding import Size
from tests.parity.numpy_stack import CAPABILITIES as PRIMITIVES
from tests.parity.numpy_stack import Done

CAPABILITIES = PRIMITIVES.model_copy(
    update={
        "graphs": Graphs(
            architectures=dict.fromkeys(MODEL_TYPES, ("float32", "float64", "bfloat16")), nf4=False,
            paths=("checkpoint", "chunked_loss", "fused_attention", "fused_lora"),
            layout_options=tuple({option for recipes in OPTIONS.values() for recipe in recipes for option in recipe.layout.options}),
            packing=True, patterns=True,
        )
    }
)  # fmt: skip
TAPS = {
    tap.name
    for recipe in (recipe for recipes in (*PLAIN.values(), *OPTIONS.values()) for recipe in recipes)
    for section in ("embedding", "layers.0", "head")
    for tap in taps.section_taps(GraphPlan(layout=recipe.layout, dtype="float64", lora=recipe.lora), section)
} - {"loss"}
"""What a graph in bfloat16 stores."""

ChangePlan = Callable[[GraphPlan], GraphPlan]
Spoil = Callable[[str, np.ndarray], np.ndarray]


def small_case(seed: int = 1, *, which: int = 0, initial: bool = False, base: Nf4 | None = None) -> GraphCase:
    """One of the Llamas that tier C draws."""
    return case_of(PLAIN["llama"][which], seed, initial=initial, base=base)


def case_of(recipe: Recipe, seed: int = 1, *, initial: bool = False, base: Nf4 | None = None, packed: bool = False) -> GraphCase:
    """One of the graphs that tier C draws."""
    return draws.Draw(recipes=(recipe,), base=base, packed=packed).case(recipe, seed, initial=initial, spiky=False)


def with_layout(**changes: Any) -> ChangePlan:
    """A plan whose layout has other values: as a stack that reads a field wrongly."""
    return lambda plan: plan.model_copy(update={"layout": plan.layout.model_copy(update=changes)})


def with_lora(**changes: Any) -> ChangePlan:
    """A plan whose LoRA has other values."""
    return lambda plan: plan.model_copy(update={"lora": Lora(**{**plan.lora.model_dump(), **changes})})


class Stored:
    """A Noise that rounds each tap to bfloat16 where it is computed, but for the loss and for those that are kept."""

    ulp, mixed = 0.0, False

    def __init__(self, keeps: Sequence[str]) -> None:
        self._keeps = keeps

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        """The value that follows; `site` is SECTION/NAME."""
        name = site.rpartition("/")[2]
        return value.astype("bfloat16").astype(np.float64) if name in TAPS and name not in self._keeps else value


class GraphStack:
    """What the engine and bisect need of a StackProcess.

    Args:
        change: what this stack makes of the plan that it is given.
        weigh: what it makes of a weight, by name.
        spoil: what it makes of an answer of a whole graph, by name: a tap shown wrongly.
        keeps: taps that it shows in bfloat16 and goes on with unrounded.
    """

    def __init__(
        self,
        name: str,
        *,
        change: ChangePlan = lambda plan: plan,
        weigh: Spoil = lambda name, weight: weight,
        spoil: Spoil = lambda name, answer: answer,
        keeps: Sequence[str] = (),
    ) -> None:
        self.name, self._change, self._weigh, self._spoil, self.keeps = name, change, weigh, spoil, tuple(keeps)
        self.graph: str | None = None
        self.busy: list[tuple[int, int]] = []
        self.asked: list[str] = []
        self._tensors: dict[str, np.ndarray] = {}

    def request(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Answer:
        """As StackProcess.request."""
        return self.submit(request, values, tensors).result()

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Done:
        """Computes at once."""
        self.asked.append(request)
        started = time.monotonic_ns()
        try:
            answer: dict[str, np.ndarray] = getattr(self, f"_{request}")(values, tensors)
        except (ValueError, KeyError) as error:
            return Done(RequestFailed(self.name, type(error).__name__, str(error), ""))
        return Done(Answer({}, answer, (started, time.monotonic_ns())))

    def _open(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._opened, self._plan = values["graph"], GraphPlan.model_validate(values["plan"])
        graph.require(graph.weights(self._plan) | graph.adapter(self._plan), tensors, "open")
        self._tensors = dict(tensors)
        return {}

    def _state(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert values["graph"] == self._opened
        self._tensors |= tensors
        return {}

    def _gradients(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert values["graph"] == self._opened
        trace = self._oracle().graph(Batch(**tensors), keep=lambda name: name in set(values["taps"]))
        answer = trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}
        return {name: self._rounded(name, self._spoil(name, array)) for name, array in answer.items()}

    def _forward(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert values["graph"] == self._opened
        trace = self._oracle().graph(Batch(**tensors), keep=lambda name: name in set(values["taps"]))
        return {name: self._rounded(name, self._spoil(f"forward.{name}", tap)) for name, tap in trace.taps.items()}

    def _block(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert values["graph"] == self._opened
        graph.require_block(self._plan, values["section"], tensors)
        answer = self._oracle().section(values["section"], widened(tensors))
        return {name: self._rounded(name, array) for name, array in answer.items()}

    def _oracle(self) -> Oracle:
        adapter = {name: self._held(self._tensors[name]) for name in graph.adapter(self._plan)}
        noise = Stored(self.keeps) if self._plan.dtype == "bfloat16" else None
        return Oracle(self._change(self._plan), lambda name: self._weigh(name, self._held(self._tensors[name])), adapter, noise=noise)

    def _held(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.astype("bfloat16").astype(np.float32) if self._plan.dtype == "bfloat16" else tensor

    def _rounded(self, name: str, array: np.ndarray) -> np.ndarray:
        matrix = name.endswith((".lora_a", ".lora_b"))
        dtype = "float32" if matrix and self._plan.dtype == "bfloat16" else graph.dtype_of(self._plan, name)
        return np.asarray(array).astype(dtype)
