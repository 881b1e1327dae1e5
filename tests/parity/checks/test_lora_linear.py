"""What the adapter's checks draw."""

from __future__ import annotations

import math

import numpy as np

from parity.checks import lora_linear
from parity.checks.check import Case
from tests.parity.checks.test_strategies import drawn_cases

PLAIN, EXACT = lora_linear.CHECKS


def scale(case: Case) -> float:
    rank = len(case.inputs["float32"]["lora_a"])
    return float(case.attrs["alpha"] / (math.sqrt(rank) if case.attrs["rslora"] else rank))


def test_what_hides_bugs_is_drawn() -> None:
    cases = drawn_cases(PLAIN, 100)
    assert {case.attrs["rslora"] for case in cases} == {False, True}
    assert {case.attrs["dropout"] for case in cases} == set(lora_linear.DROPOUTS)
    assert {"bias" in case.inputs["float32"] for case in cases} == {False, True}
    assert {bool(case.inputs["float32"]["lora_b"].any()) for case in cases} == {False, True}
    assert any(case.attrs["alpha"] % 1 for case in cases), "an alpha that is no integer"
    for case in cases:
        tensors = case.inputs["float32"]
        assert case.attrs["alpha"] != len(tensors["lora_a"])
        assert scale(case) != 1
        assert ("keep" in tensors) is (case.attrs["dropout"] > 0)
    sizes = {len(set(case.inputs["float32"]["x"].shape + case.inputs["float32"]["lora_b"].shape)) for case in cases}
    assert sizes == {4, 1}, "no dimension can be taken for another, or all are alike, where a transpose keeps every shape"
    masks = [case.inputs["float32"]["keep"] for case in cases if "keep" in case.inputs["float32"]]
    assert any(mask.any() and not mask.all() for mask in masks)


def test_every_operand_takes_the_role_of_the_odd_integers() -> None:
    cases = drawn_cases(EXACT, 100)
    assert {case.name.split("odd integers in ")[1].split(",")[0] for case in cases} == set(lora_linear.sizes((7, 33, 4, 20)))
    assert {math.log2(scale(case)) for case in cases} == {-1, 0, 1, 2}
    assert {case.attrs["dropout"] for case in cases} == {0.0, 0.5}


def test_no_order_of_the_sums_leaves_the_integers() -> None:
    """The sums of the absolute values stay under 2^24 and 2^53, and nothing has a smaller part than 1/2."""
    for case in drawn_cases(EXACT, 40):
        s, twice = max(scale(case), 1.0), 2.0 if case.attrs["dropout"] else 1.0
        for dtype, most in (("float32", 2.0**24), ("float64", 2.0**53)):
            x, w, a, b, bar = (np.abs(case.inputs[dtype][name]).astype(np.float64) for name in ("x", "weight", "lora_a", "lora_b", "y_bar"))
            h, g = twice * x @ a.T, s * bar @ b
            sums = [x @ w.T + np.abs(case.inputs[dtype]["bias"]) + s * h @ b.T, bar @ w + twice * g @ a, g.T @ (twice * x), s * bar.T @ h]
            assert max(one.max() for one in sums) <= most
