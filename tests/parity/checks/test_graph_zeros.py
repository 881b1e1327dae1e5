"""What the structure makes zero is compared by itself, with a limit of exactly 0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from contract.worker import taps
from parity.checks import graph_zeros, proxy
from parity.checks.graph_case import GraphCase
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.reference.proxy import oracle
from tests.parity.graph_stack import case_of

LEAST = float(np.finfo(np.float64).smallest_subnormal)


def answer_of(case: GraphCase) -> dict[str, np.ndarray]:
    """The reference's taps and gradients."""
    trace = oracle(case.plan, case.weight, case.adapter).graph(case.batch)
    return {**trace.taps, **{f"grad.{name}": gradient for name, gradient in trace.grads.items()}}


def failing(case: GraphCase, observed: Mapping[str, np.ndarray]) -> set[str]:
    return {one.tensor for one in graph_zeros.comparisons(case, observed) if not one.passed}


def test_at_b_0_every_gradient_of_a_and_every_b_a_x() -> None:
    case = case_of(PLAIN["llama"][0], initial=True)
    right = answer_of(case)
    compared = {one.tensor for one in graph_zeros.comparisons(case, right)}
    assert compared == {"zero.weights"} | {
        f"zero.{kind}" for name in taps.LINEARS for kind in (f"grad.{name}.lora_a", f"{name}.lora_bax")
    }  # fmt: skip
    assert failing(case, right) == set()
    assert all(one.bound == 0 and one.controls.caught == one.controls.applied > 0 for one in graph_zeros.comparisons(case, right))
    for name in ("grad.layers.1.v_proj.lora_a", "layers.0.down_proj.lora_bax"):
        kind = name.replace("layers.0.", "").replace("layers.1.", "")
        assert failing(case, {**right, name: right[name] + LEAST}) == {f"zero.{kind}"}


def test_at_another_b_the_gradients_are_free() -> None:
    case = case_of(PLAIN["llama"][0])
    assert {one.tensor for one in graph_zeros.comparisons(case, answer_of(case))} == {"zero.weights"}


@pytest.mark.parametrize("model_type", ["mistral", "gpt2"])
def test_what_is_not_seen_has_no_weight_and_what_sees_nothing_no_context(model_type: str) -> None:
    case = case_of(OPTIONS[model_type][0], packed=True)
    right = answer_of(case)
    assert failing(case, right) == set()
    assert case.batch.segments is not None
    padded = tuple(np.argwhere(case.batch.segments == -1)[0])
    for name, place in (("layers.1.weights", (0, 0, 3, 4)), ("layers.0.context", (*padded, 0))):
        wrong = right[name].copy()
        assert wrong[place] == 0
        wrong[place] = LEAST
        assert failing(case, {**right, name: wrong}) == {f"zero.{name.rpartition('.')[2]}"}
        wrong[place] = np.nan
        assert failing(case, {**right, name: wrong}) == {f"zero.{name.rpartition('.')[2]}"}


def test_a_window_hides_what_lies_before_it() -> None:
    case = case_of(OPTIONS["mistral"][0])
    right = answer_of(case)
    wrong = right["layers.0.weights"].copy()
    assert wrong[0, 0, 9, 2] == 0
    wrong[0, 0, 9, 2] = LEAST
    assert failing(case, {**right, "layers.0.weights": wrong}) == {"zero.weights"}


def test_the_proxy_graph_has_no_attention() -> None:
    draw = proxy.Draw()
    case = draw.case(draw.recipes[0], 1, initial=True)
    right = answer_of(case)
    kinds = {f"zero.{kind}" for name in ("o_proj", "lm_head") for kind in (f"grad.{name}.lora_a", f"{name}.lora_bax")}
    assert {one.tensor for one in graph_zeros.comparisons(case, right)} == kinds
    assert failing(case, right) == set()
