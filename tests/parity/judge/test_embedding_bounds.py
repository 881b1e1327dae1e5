"""The embedding's bounds: any order of adding up a repeated id's places stays inside, a lost or doubled place does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.checks import embedding as check
from parity.checks import strategies
from parity.reference.embedding import embedding
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, roundings


def drawn(kind: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = check.ids(rng, 5, 23)
    values = {"weight": strategies.VALUES[kind](rng, (5, 3)), "y_bar": strategies.VALUES[kind](rng, (23, 3))}
    return {**primitive_bounds.in_dtype(values, dtype), "ids": ids}


@pytest.mark.parametrize("kind", strategies.VALUES)
def test_every_order_stays_inside(kind: str) -> None:
    tensors = drawn(kind)
    judged = primitive_bounds.Judged(embedding, tensors, {}, "float32")
    for rounding in roundings():
        weight, bar = rounding.given(tensors["weight"]), rounding.given(tensors["y_bar"])
        rows = [bar[tensors["ids"] == token].sum(0).value if token in tensors["ids"] else np.zeros((1, 3)) for token in range(5)]
        found = judged.ratios({"y": weight[tensors["ids"]], "weight_grad": Number(np.concatenate(rows), rounding)})
        assert max(found.values()) <= 1, (str(rounding), found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", strategies.VALUES)
def test_torch_stays_inside(kind: str, dtype: str) -> None:
    tensors = drawn(kind, dtype)
    (weight,) = primitive_bounds.leaves(tensors, "weight")
    answer = primitive_bounds.answered(
        {"y": torch.nn.functional.embedding(torch.tensor(tensors["ids"]), weight)}, {"weight": weight}, tensors["y_bar"]
    )
    assert max(primitive_bounds.ratios(embedding, tensors, {}, dtype, answer).values()) <= 1


def test_a_copy_and_a_row_that_stands_once_are_exact() -> None:
    tensors = {"weight": np.eye(4, 3, dtype=np.float32), "ids": np.array([3, 0, 3]), "y_bar": np.full((3, 3), 0.1, dtype=np.float32)}
    limits = primitive_bounds.Judged(embedding, tensors, {}, "float32").limits
    assert not limits["y"].any()
    assert not limits["weight_grad"][:3].any()
    assert np.all((limits["weight_grad"][3] > 0) & (limits["weight_grad"][3] <= 2**-24 * 0.21))


@pytest.mark.parametrize("bug", ["overwritten", "one place too many", "another row", "float32"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn("gaussian", "float64")
    exact = primitive_bounds.Judged(embedding, tensors, {}, "float64")
    y, gradient = exact.expected["y"], exact.expected["weight_grad"].copy()
    if bug == "overwritten":
        gradient[tensors["ids"]] = tensors["y_bar"]
    elif bug == "one place too many":
        gradient[tensors["ids"][0]] += tensors["y_bar"][0]
    elif bug == "another row":
        y, gradient = np.roll(y, 1, 0), np.roll(gradient, 1, 0)
    else:
        gradient = gradient.astype(np.float32).astype(np.float64)
    assert exact.ratios({"y": y, "weight_grad": gradient})["weight_grad"] > 1e4


def test_just_past_the_bound_fails() -> None:
    """Of the gradient; a copy has no bound to be past."""
    judged = primitive_bounds.Judged(embedding, drawn("gaussian"), {}, "float32")
    value, limit = judged.expected["weight_grad"], judged.limits["weight_grad"]
    for factor, inside in ((0.999, True), (1.001, False)):
        assert (judged.ratios({**judged.expected, "weight_grad": value + factor * limit})["weight_grad"] <= 1) is inside
    assert judged.ratios({**judged.expected, "y": np.nextafter(judged.expected["y"], np.inf)})["y"] == np.inf
