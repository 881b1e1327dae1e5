"""The proxy graph's float64 reference against another way to compute the same (tests/proxy_formula.py).

Two float64 computations of a graph this small differ by the order of sums; `BETWEEN` lies half way, in powers of two, between float32's
unit and float64's, which no order of sums in it reaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.worker import graph, taps
from contract.worker.plan import Lora
from parity.reference.graph import Batch
from parity.reference.proxy import ProxyOracle, oracle
from tests.proxy_formula import GPT2, batch, logits, loss_and_gradients, plan, tensors_of

BETWEEN = 2.0**-38.5
PLANS: dict[str, dict[str, Any]] = {
    "all layers": {}, "two": {"middle_blocks": 2}, "one": {"middle_blocks": 1}, "head alone": {"middle_blocks": 0},
    "GPT-2, rslora": {"layout": GPT2, "lora": Lora(rank=3, alpha=5.0, rslora=True)},
}  # fmt: skip


def reference(changed: dict[str, Any]) -> tuple[ProxyOracle, dict[str, np.ndarray], Batch]:
    wanted = plan(**changed)
    tensors = tensors_of(wanted)
    adapter = {name: tensors[name] for name in graph.adapter(wanted)}
    found = oracle(wanted, lambda name: tensors["embedding" if name == "lm_head" else name], adapter)
    assert isinstance(found, ProxyOracle)
    return found, tensors, Batch(**batch(wanted))


def assert_same(found: np.ndarray, exact: np.ndarray, name: str) -> None:
    assert exact.any(), name
    assert np.abs(found - exact).max() <= BETWEEN * np.abs(exact).max(), name


@pytest.mark.parametrize("name", PLANS)
def test_loss_logits_and_gradients(name: str) -> None:
    wanted = plan(**PLANS[name])
    own, tensors, tokens = reference(PLANS[name])
    trace, exact = own.graph(tokens), loss_and_gradients(wanted, tensors, tokens.tensors())
    assert set(trace.taps) == set(taps.full_names(wanted))
    assert {f"grad.{name}" for name in trace.grads} | {"loss"} == set(exact)
    assert_same(trace.taps["lm_head"], logits(wanted, tensors, tokens.ids), "lm_head")
    assert_same(trace.taps["loss"], exact["loss"], "loss")
    for matrix, gradient in trace.grads.items():
        assert_same(gradient, exact[f"grad.{matrix}"], matrix)


def test_sections_are_the_graph_and_their_cotangents_its_gradients() -> None:
    wanted = plan()
    own, _, tokens = reference({})
    trace, names = own.graph(tokens), taps.sections(wanted.blocks)
    for section, after in zip(names[1:], [*names[2:], ""], strict=True):
        bar = {"bar.output": trace.input_bars[after]} if after else {"bar.loss": np.ones(()), "labels": tokens.labels}
        found = own.section(section, {"input": trace.inputs[section], **bar})
        for tap in taps.section_taps(wanted, section):
            assert found[tap.name].tobytes() == trace.taps[taps.prefix(section) + tap.name].tobytes()
        assert found["grad.input"].tobytes() == trace.input_bars[section].tobytes()
        for name in graph.section_adapter(wanted, section):
            assert found[f"grad.{name.removeprefix(taps.prefix(section))}"].tobytes() == trace.grads[name].tobytes()


def test_an_override_cuts_the_graph() -> None:
    own, _, tokens = reference({})
    x = own.graph(tokens).inputs["layers.1"]
    generator = np.random.default_rng(0)
    given = {"input": x, "override.norm": generator.standard_normal(x.shape), "bar.o_proj": generator.standard_normal(x.shape)}
    found = own.section("layers.1", given)
    assert found["grad.norm"].any()
    assert not found["grad.input"].any()
    assert found["norm"].tobytes() != given["override.norm"].tobytes()
