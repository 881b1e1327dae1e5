"""The pass from the last section to the first: the whole pass's numbers, log2(L) inputs kept, L / 2 log2(L) sections computed again."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from contract.worker import taps
from parity.checks import proxy
from parity.checks.graph_case import GraphCase
from parity.checks.graph_layouts import OPTIONS
from parity.reference.backwards import backwards
from parity.reference.proxy import oracle
from tests.parity.graph_stack import case_of


def proxy_case() -> GraphCase:
    return next(iter(proxy.Draw().each()))


@pytest.mark.parametrize(
    "case", [case_of(OPTIONS["qwen2"][1], packed=True), case_of(OPTIONS["gpt2"][0]), proxy_case()], ids=lambda case: case.name
)
def test_each_section_is_given_what_the_whole_pass_gives_it(case: GraphCase) -> None:
    right = oracle(case.plan, case.weight, case.adapter)
    whole = right.graph(case.batch)
    found = dict(backwards(right, case.plan, case.batch))
    assert list(found) == list(reversed(taps.sections(case.plan.blocks)))
    for section, trace in found.items():
        for name in trace.taps:
            np.testing.assert_array_equal(trace.taps[name], whole.taps[name])
        for given, wanted in ((trace.inputs, whole.inputs), (trace.input_bars, whole.input_bars)):
            assert given or section == taps.EMBEDDING or given is trace.input_bars
            for name, array in given.items():
                np.testing.assert_array_equal(array, wanted[name])


class Counting:
    """An oracle whose sections add one to what they are given; `alive`: how many of the residual streams that it gave are kept."""

    def __init__(self) -> None:
        self.forward = self.backward = self.most = 0
        self._given: list[weakref.ref[np.ndarray]] = []

    def section(self, section: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if section == taps.EMBEDDING:
            return {"embedding": self._noted(np.zeros(1))}
        if any(name.startswith("bar.") for name in tensors):
            self.backward += 1
            return {"output": tensors["input"] + 1, "grad.input": np.zeros(1)}
        self.forward += 1
        return {"output": self._noted(tensors["input"] + 1)}

    def _noted(self, array: np.ndarray) -> np.ndarray:
        self._given.append(weakref.ref(array))
        self.most = max(self.most, sum(one() is not None for one in self._given))
        return array


@pytest.mark.parametrize("layers", [1, 2, 3, 30, 64, 100])
def test_memory_grows_as_the_logarithm_and_work_as_layers_times_it(layers: int) -> None:
    case = case_of(OPTIONS["llama"][0])
    plan = case.plan.model_copy(update={"layout": case.plan.layout.model_copy(update={"num_hidden_layers": layers})})
    counting = Counting()
    seen = []
    for section, trace in backwards(counting, plan, case.batch):  # type: ignore[arg-type]
        seen.append(section)
        if section.startswith("layers."):
            assert trace.inputs[section] == int(section.removeprefix("layers.")), "a section has its own input"
    assert seen == list(reversed(taps.sections(layers)))
    levels = math.ceil(math.log2(layers)) if layers > 1 else 0
    assert counting.most <= levels + 3  # those kept, the one that is asked about, the next one while it is made
    assert counting.backward == layers + 1
    assert counting.forward <= layers + layers / 2 * levels
