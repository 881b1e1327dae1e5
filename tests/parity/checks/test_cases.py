"""Every check's drawn inputs agree with themselves: a strategy that errs would blame a stack, or ask nothing of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from hypothesis import Phase
from hypothesis import strategies as st

from contract.worker.operation import expected_answer
from contract.worker.operations import OPERATIONS
from parity.checks import registry, strategies
from parity.checks.check import Case, Check, Request
from parity.drawing import draw

CHECKS = [check for check in registry.CHECKS if check.tier in "AB"]
EXAMPLES = 6
LONGEST = 1_048_575
NOT_FINITE = ("a.softmax", "a.softmax_exact", "a.elementary_special")
"""Beside those named _special and _masked: softmax's hidden entries."""


def drawn(check: Check, seed: int = 7) -> list[Case]:
    cases: list[Case] = []
    draw(check, cases.append, EXAMPLES, seed, (Phase.generate,))
    return cases


def problems(check: Check, case: Case) -> Iterator[str]:
    """What a case has wrong, in a few words."""
    yield from _two_draws(check, case)
    for plan in check.plans:
        for request in plan.requests(case):
            assert isinstance(request, Request)
            if request.attrs.get("dtype", plan.dtype) != plan.dtype:
                yield f"asks in {request.attrs['dtype']}, must be {plan.dtype}"
            try:
                expected_answer(OPERATIONS[request.op], request.attrs, request.tensors)
            except ValueError as error:
                yield str(error)
            yield from _out_of_range(request)
            if not check.id.endswith(("_special", "_masked")) and check.id not in NOT_FINITE:
                yield from (f"{name} is not finite" for name, array in request.tensors.items() if not np.isfinite(array).all())


def _two_draws(check: Check, case: Case) -> Iterator[str]:
    """float32's inputs are float64's, rounded; but for exact integers, of as many bits as the dtype holds, and points of a dtype's own."""
    own = check.id.endswith("_exact") or check.operations == ("elementary",)
    wide, narrow = case.inputs.get("float64", {}), case.inputs.get("float32", {})
    if check.tier == "A" and wide and narrow and set(wide) != set(narrow) and check.operations != ("elementary",):
        yield f"float64 has {sorted(wide)}, float32 {sorted(narrow)}"
    for name in set(wide) & set(narrow):
        if wide[name].dtype.kind != "f" or not own:
            with np.errstate(over="ignore"):
                same = np.array_equal(wide[name].astype(narrow[name].dtype), narrow[name], equal_nan=narrow[name].dtype.kind == "f")
            if not same:
                yield f"{name} is another draw in float32"


def _out_of_range(request: Request) -> Iterator[str]:
    """Integers that mean nothing, or leave nothing to compare."""
    t, attrs = request.tensors, request.attrs
    if request.op == "cross_entropy":
        kept = t["labels"][t["labels"] != attrs["ignore_index"]]
        if kept.size == 0 or kept.min() < 0 or kept.max() >= t["logits"].shape[1]:
            yield "a label outside of the vocabulary, or none at all"
    if request.op == "embedding" and not (t["ids"].min() >= 0 and t["ids"].max() < len(t["weight"])):
        yield "an id outside of the vocabulary"
    if "positions" in t and not (t["positions"].min() >= 0 and t["positions"].max() <= LONGEST):
        yield "a position outside of the longest text"
    if "step" in t and t["step"] < 0:
        yield "a step before the first"
    if ("keep" in t) != bool(attrs.get("dropout")) and request.op == "lora_linear" and "keep" not in t:
        yield "a dropout without a mask"
    for name, array in t.items():
        if name.endswith("_bar") and not array.any() and array.size > 8:  # one of small integers may well be 0
            yield f"{name} is zero, and every gradient with it"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_strategy_agrees_with_itself(check: Check) -> None:
    cases = drawn(check)
    assert cases
    for case in cases:
        assert list(problems(check, case)) == [], case.name


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_seed_names_its_draws(check: Check) -> None:
    """So that the command in a report asks the same again."""
    for one, again in zip(drawn(check), drawn(check), strict=True):
        assert difference(one, again) == ""
    assert any(difference(one, other) for one, other in zip(drawn(check), drawn(check, seed=8), strict=False))


def difference(one: Case, other: Case) -> str:
    """What two cases differ in, if anything."""
    if (one.name, dict(one.attrs), set(one.inputs)) != (other.name, dict(other.attrs), set(other.inputs)):
        return "name, attributes or dtypes"
    for dtype, arrays in one.inputs.items():
        for name, array in arrays.items():
            if array.tobytes() != other.inputs[dtype][name].tobytes():
                return f"{name} in {dtype}"
    return ""


def of(check_id: str) -> Check:
    return next(check for check in CHECKS if check.id == check_id)


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray], *dtypes: str) -> Callable[[Case], Case]:
    def spoil(case: Case) -> Case:
        inputs = {
            dtype: {**arrays, name: change(arrays[name])} if dtype in dtypes and name in arrays else arrays
            for dtype, arrays in case.inputs.items()
        }
        return Case(name=case.name, inputs=inputs, attrs=case.attrs)

    return spoil


def _without(case: Case, name: str) -> Case:
    narrow = {other: array for other, array in case.inputs["float32"].items() if other != name}
    return Case(name=case.name, inputs={**case.inputs, "float32": narrow}, attrs=case.attrs)


BOTH = ("float64", "float32")
SELF_CONTRADICTIONS: Mapping[str, tuple[str, Callable[[Case], Case], str]] = {
    "two draws": ("a.rms_norm", _changed("weight", lambda w: w + 1, "float32"), "weight is another draw in float32"),
    "two draws of integers": ("a.lora_linear_exact", _changed("x", lambda x: x[:, :-1], "float32"), "must agree"),
    "two masks": ("a.lora_linear_exact", _changed("keep", lambda keep: ~keep, "float32"), "keep is another draw in float32"),
    "labels": ("a.cross_entropy", _changed("labels", lambda labels: labels + 5000, *BOTH), "a label outside"),
    "no label": ("a.cross_entropy", _changed("labels", lambda labels: np.full_like(labels, -100), *BOTH), "a label outside"),
    "ids": ("a.embedding", _changed("ids", lambda ids: ids - 100, *BOTH), "an id outside"),
    "positions": ("a.rope", _changed("positions", lambda positions: positions + 2**20, *BOTH), "a position outside"),
    "step": ("a.adamw_step", _changed("step", lambda step: np.asarray(-1), *BOTH), "a step before"),
    "shapes": ("a.attention", _changed("v", lambda v: v[..., :-1], *BOTH), "must agree"),
    "dtypes": ("a.silu", _changed("x", lambda x: x.astype(np.float16), "float32"), "x is float16, must be float32"),
    "infinities": ("a.gelu", _changed("x", lambda x: x + np.inf, *BOTH), "x is not finite"),
    "other tensors": ("a.swiglu", lambda case: _without(case, "up"), "float32 ['gate', 'y_bar']"),
    "no gradient": ("a.swiglu", _changed("y_bar", np.zeros_like, *BOTH), "y_bar is zero"),
}


@pytest.mark.parametrize("what", SELF_CONTRADICTIONS)
def test_a_strategy_that_contradicts_itself_is_found(what: str) -> None:
    check_id, spoil, found = SELF_CONTRADICTIONS[what]
    listed = [list(problems(of(check_id), spoil(case))) for case in drawn(of(check_id)) if set(case.inputs) == set(BOTH)]
    assert any(found in problem for each in listed for problem in each), listed


def test_a_strategy_that_ignores_its_seed_is_found() -> None:
    @st.composite
    def unseeded(draw: st.DrawFn) -> Case:
        seed = draw(strategies.SEEDS)
        values = {name: np.random.default_rng().standard_normal((3, 4)) for name in ("gate", "up", "y_bar")}
        return Case(name=f"seed {seed}", inputs=strategies.by_dtype(values))

    check = dataclasses.replace(of("a.swiglu"), cases=unseeded())
    assert difference(drawn(check)[0], drawn(check)[0]) != ""
