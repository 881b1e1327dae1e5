"""Draws of norms, softmax, attention and RoPE: what they must hold, and that each known mistake shows in them.

A mistake is the right NumPy stack asked something else, or its answer changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from contract.worker.operation import expected_answer
from contract.worker.operations import OPERATIONS
from parity.checks import attention, norms, rope, softmax
from parity.checks.check import Answered, Case, Check, Question
from parity.reference.attention import visible
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

CHECKS = {check.id: check for module in (norms, softmax, attention, rope) for check in module.CHECKS}
QUICK = 12
"""Examples of a check in `--profile quick`, the fewest that any run draws."""

Tensors = Mapping[str, np.ndarray]
Wrong = Callable[[str, dict[str, Any], dict[str, np.ndarray]], dict[str, np.ndarray]]


def examples(check: Check, count: int = QUICK) -> list[Case]:
    found: list[Case] = []

    @settings(max_examples=count, database=None, derandomize=True)
    @given(check.cases)
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


def right(op: str, attrs: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        return dict(COMPUTE[op](attrs, tensors))


def seen(check: Check, dtype: str, wrong: Wrong) -> bool:
    """Whether a stack with this mistake fails in one of the examples of the shortest run."""
    (plan,) = [plan for plan in check.plans if (plan.question, plan.dtype) == (Question.PRECISION, dtype)]
    for case in examples(check):
        (request,) = plan.requests(case)
        assert hasattr(request, "attrs")
        answer = wrong(request.op, dict(request.attrs), dict(request.tensors))
        with np.errstate(all="ignore"):
            verdicts = plan.judge(case, [Answered(stack="wrong", capabilities=CAPABILITIES, answers=[answer])], 1e-9)
        if not all(verdict.passed for verdict in verdicts):
            return True
    return False


def asked(**changed: Callable[[dict[str, Any], Tensors], Any]) -> Wrong:
    """The right stack, asked with other attributes or tensors."""

    def wrong(op: str, attrs: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {name: change(attrs, tensors) for name, change in changed.items()}
        new_tensors = {name: values.get(name, array) for name, array in tensors.items()}
        left = {name: array for name, array in new_tensors.items() if array is not None}
        return right(op, {name: values.get(name, value) for name, value in attrs.items()}, left)

    return wrong


def answered(**changed: Callable[[dict[str, Any], Tensors, np.ndarray], np.ndarray]) -> Wrong:
    """The right stack's answer, changed."""

    def wrong(op: str, attrs: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = right(op, attrs, tensors)
        with np.errstate(all="ignore"):
            return {name: changed[name](attrs, tensors, one) if name in changed else one for name, one in answer.items()}

    return wrong


def _mean_square(tensors: Tensors) -> np.ndarray:
    mean: np.ndarray = np.mean(np.square(tensors["x"]), axis=-1, keepdims=True)
    return mean


def _unbiased(attrs: dict[str, Any], tensors: Tensors, y: np.ndarray) -> np.ndarray:
    width = tensors["x"].shape[-1]
    narrow = right("layer_norm", {**attrs, "eps": attrs["eps"] * (width - 1) / width}, dict(tensors))["y"]
    scaled: np.ndarray = ((narrow - tensors["bias"]) * np.sqrt((width - 1) / width) + tensors["bias"]).astype(y.dtype)
    return scaled


def _rescaled(attrs: dict[str, Any], tensors: Tensors, y: np.ndarray) -> np.ndarray:
    """eps added after the division by the row's largest magnitude."""
    largest = np.maximum(np.abs(tensors["x"]).max(-1, keepdims=True), 1e-30)
    wrong: np.ndarray = tensors["x"] / np.sqrt(_mean_square(tensors) + attrs["eps"] * largest**2) * tensors["weight"]
    return wrong.astype(y.dtype)


def _in_pairs(attrs: dict[str, Any], tensors: Tensors, y: np.ndarray) -> np.ndarray:
    halves = [y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]]
    return np.stack(halves, -1).reshape(y.shape)


def _tiled(attrs: dict[str, Any], tensors: Tensors) -> np.ndarray:
    """The query's heads as `repeat` would pair them with those of the keys."""
    heads, key_heads = tensors["q"].shape[1], tensors["k"].shape[1]
    return tensors["q"][:, np.arange(heads).reshape(-1, key_heads).T.ravel()]


def _softly_masked(attrs: dict[str, Any], tensors: Tensors, context: np.ndarray) -> np.ndarray:
    """-1e4 in the place of -inf: what is not seen is hidden only while scores lie above that."""
    q, k, v = (np.repeat(tensors[name], tensors["q"].shape[1] // tensors[name].shape[1], axis=1) for name in ("q", "k", "v"))
    mask = visible(q.shape[2], attrs["window"], tensors.get("valid"))[:, 0]
    scores = np.where(mask, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -1e4)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wrong: np.ndarray = (weights / weights.sum(-1, keepdims=True)) @ v
    return np.where(mask.any(-1, keepdims=True), wrong, 0).astype(context.dtype)


MISTAKES: list[tuple[str, str, Wrong]] = [
    ("a.rms_norm", "eps outside the root", answered(
        y=lambda a, t, y: (t["x"] / (np.sqrt(_mean_square(t)) + a["eps"]) * t["weight"]).astype(y.dtype))),
    ("a.rms_norm", "times the root", answered(
        y=lambda a, t, y: (t["x"] * np.sqrt(_mean_square(t) + a["eps"]) * t["weight"]).astype(y.dtype))),
    ("a.rms_norm", "eps of another norm", asked(eps=lambda a, t: a["eps"] * 1.25)),
    ("a.rms_norm", "eps inflated by a rescaling", answered(y=_rescaled)),
    ("a.rms_norm", "no gradient of the weight", answered(weight_grad=lambda a, t, g: np.zeros_like(g))),
    ("a.layer_norm", "n - 1", answered(y=_unbiased)),
    ("a.layer_norm", "eps of another norm", asked(eps=lambda a, t: a["eps"] * 1.25)),
    ("a.layer_norm", "no bias", asked(bias=lambda a, t: np.zeros_like(t["bias"]))),
    ("a.softmax", "no maximum taken off", answered(y=lambda a, t, y: np.exp(t["x"]) / np.exp(t["x"]).sum(-1, keepdims=True))),
    ("a.softmax", "a large number for -inf", asked(x=lambda a, t: np.where(np.isinf(t["x"]), t["x"].dtype.type(-30), t["x"]))),
    ("a.softmax", "the Jacobian's diagonal alone", answered(x_grad=lambda a, t, g: right("softmax", a, dict(t))["y"] * t["y_bar"])),
    ("a.attention", "heads tiled", asked(q=_tiled)),
    ("a.attention", "window off by one", asked(window=lambda a, t: None if a["window"] is None else a["window"] + 1)),
    ("a.attention", "no window", asked(window=lambda a, t: None)),
    ("a.attention", "a window of one is none", asked(window=lambda a, t: None if a["window"] == 1 else a["window"])),
    ("a.attention", "-1e4 where nothing is seen", answered(context=_softly_masked)),
    ("a.attention", "padding ignored", asked(valid=lambda a, t: None)),
    ("a.attention", "scaled by the hidden size", asked(q=lambda a, t: (t["q"] / np.sqrt(t["q"].shape[1])).astype(t["q"].dtype))),
    ("a.attention", "the scale in bfloat16", asked(q=lambda a, t: (t["q"] * (1 + 2.0**-9)).astype(t["q"].dtype))),
    ("a.rope", "pairs for halves", answered(y=_in_pairs)),
    ("a.rope", "the gradient turned as the value", answered(x_grad=lambda a, t, g: right("rope", a, {**t, "x": t["y_bar"]})["y"])),
    ("a.rope_tables", "no scaling", asked(scaling=lambda a, t: None)),
    ("a.rope_tables", "llama3 as linear", asked(
        scaling=lambda a, t: a["scaling"] and {"rope_type": "linear", "factor": a["scaling"]["factor"]})),
    ("a.rope_tables", "odd positions lost", asked(positions=lambda a, t: t["positions"] // 2 * 2)),
    ("a.rope_tables", "theta of another model", asked(theta=lambda a, t: 1e4)),
    ("a.rope_tables", "theta in float32", asked(theta=lambda a, t: float(np.float32(a["theta"])))),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("check", "mistake", "wrong"), MISTAKES, ids=[f"{check}-{mistake}" for check, mistake, _ in MISTAKES])
def test_a_known_mistake_shows_in_the_shortest_run(check: str, mistake: str, wrong: Wrong, dtype: str) -> None:
    assert seen(CHECKS[check], dtype, wrong), mistake


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("check", list(CHECKS))
def test_the_right_stack_is_never_wrong(check: str, dtype: str) -> None:
    assert not seen(CHECKS[check], dtype, right)


@pytest.mark.parametrize("check", ["a.rms_norm", "a.layer_norm", "a.softmax", "a.attention", "a.rope"])
def test_a_float32_computation_in_float64_shows(check: str) -> None:
    def narrow(op: str, attrs: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        halved = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in tensors.items()}
        return {name: one.astype(np.float64) for name, one in right(op, {**attrs, "dtype": "float32"}, halved).items()}

    assert seen(CHECKS[check], "float64", narrow)


@pytest.mark.parametrize("check", list(CHECKS))
def test_every_case_is_a_request_that_the_table_allows_and_the_same_in_both_dtypes(check: str) -> None:
    of = CHECKS[check]
    for case in examples(of):
        assert set(case.inputs) == {"float64", "float32"}
        for dtype, tensors in case.inputs.items():
            expected_answer(OPERATIONS[of.operations[0]], {**case.attrs, "dtype": dtype}, tensors)
        if not check.endswith("_exact"):  # whose integers have as many bits as the dtype holds
            for name, array in case.inputs["float32"].items():
                np.testing.assert_array_equal(array, case.inputs["float64"][name].astype(array.dtype))


def test_attention_is_drawn_with_wholly_masked_rows_windows_and_groups() -> None:
    cases = examples(CHECKS["a.attention"], 40)
    masks = [visible(case.inputs["float32"]["q"].shape[2], case.attrs["window"], case.inputs["float32"].get("valid")) for case in cases]
    assert any((~mask.any(axis=-1)).any() for mask in masks)
    assert any((~mask.any(axis=(-1, -2))).any() for mask in masks), "a sequence that is padding as a whole"
    assert {("valid" in case.inputs["float32"], case.attrs["window"]) for case in cases} == {
        *((False, window) for window in (None, 1, 2)),
        *((True, window) for window in (None, 4, 9)),
    }
    assert {1, None} < {window for shape in attention.SHAPES for window in shape.windows}
    assert any(window is not None and window > shape.length for shape in attention.SHAPES for window in shape.windows)
    assert any(window is not None and 1 < window < shape.length - 2 for shape in attention.SHAPES for window in shape.windows)
    assert any(1 < shape.key_heads < shape.heads for shape in attention.SHAPES)
    assert any(1 == shape.key_heads < shape.heads for shape in attention.SHAPES)
    assert any(np.log2(shape.head_dim) / 2 % 1 for shape in attention.SHAPES), "a head_dim whose root is no power of two"


def test_positions_reach_the_longest_and_llama3_changes_some_frequencies_in_part() -> None:
    assert max(case.inputs["float32"]["positions"].max() for case in examples(CHECKS["a.rope_tables"])) == rope.LONGEST
    of = rope.SCALINGS["llama3"]
    assert of is not None
    parts = set()
    for _, head_dim in rope.TABLE_SHAPES:
        for theta in rope.THETAS:
            f = theta ** (-np.arange(0, head_dim, 2) / head_dim)
            for scaling in (of, rope.SCALINGS["llama3, other values"]):
                assert scaling is not None
                turns = float(str(scaling["original_max_position_embeddings"])) * f / (2 * np.pi)
                low, high = float(str(scaling["low_freq_factor"])), float(str(scaling["high_freq_factor"]))
                parts |= set(np.digitize(turns, [low, high]).tolist())
    assert parts == {0, 1, 2}


def test_rows_of_norms_are_what_their_names_say() -> None:
    rng, shape = np.random.default_rng(0), (3, 24)
    rows = {kind: fill(rng, shape) for kind, fill in norms.ROWS.items()}
    assert all(values.shape == shape for values in rows.values())
    assert not rows["zero rows"][0].any()
    assert rows["zero rows"][1:].all()
    assert np.all(np.abs(rows["offset"].mean(-1)) > 50 * rows["offset"].std(-1))
    assert 1e11 < np.abs(rows["edge of the domain"]).max() <= 1e12
    assert np.abs(rows["subnormal"]).max() < np.finfo(np.float32).smallest_normal
    assert rows["subnormal"].astype(np.float32).all()
    spiky = np.sort(np.abs(rows["spiky"]), -1)
    assert np.all(spiky[:, -1] > 2 * spiky[:, -2])


def test_a_row_of_logits_never_hides_everything() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = softmax.hide(rng, np.zeros((4, 3)))
        assert np.isfinite(values).any(-1).all()
        assert set(np.unique(values)) <= {0.0, -np.inf}
