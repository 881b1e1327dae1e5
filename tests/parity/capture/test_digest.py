"""A case's digest: the same for the same inputs wherever their files lie, another for any other bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import Phase

from contract.worker.files import FileReference
from parity.capture.digest import digest
from parity.checks import registry
from parity.checks.check import Case
from parity.drawing import draw
from tests.parity.graph_stack import small_case

FILE = FileReference(sha256="a" * 64, tensor="weight", path="/here/model.safetensors")


def case(**changes: object) -> Case:
    fields: Mapping[str, object] = {
        "name": "n", "inputs": {"float32": {"a": np.array([0.0, 1.0], np.float32)}}, "attrs": {"eps": 1e-6}, "real": FILE, **changes,
    }  # fmt: skip
    return Case(**fields)  # type: ignore[arg-type]


def test_equal_inputs_have_one_digest() -> None:
    assert digest(case()) == digest(case()) == digest(case(real=dataclasses.replace(FILE, path="/there/model.safetensors")))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "m"},
        {"attrs": {"eps": 1e-5}},
        {"attrs": {"eps": 1e-6, "window": None}},
        {"real": None},
        {"real": dataclasses.replace(FILE, sha256="b" * 64)},
        {"inputs": {"float32": {"a": np.array([-0.0, 1.0], np.float32)}}},
        {"inputs": {"float32": {"a": np.array([[0.0, 1.0]], np.float32)}}},
        {"inputs": {"float64": {"a": np.array([0.0, 1.0], np.float64)}}},
        {"inputs": {"float32": {"b": np.array([0.0, 1.0], np.float32)}}},
    ],
)
def test_any_other_input_has_another(changes: Mapping[str, object]) -> None:
    assert digest(case(**changes)) != digest(case())


def test_a_drawn_case_has_the_same_each_time() -> None:
    check = next(check for check in registry.CHECKS if check.id == "a.attention")
    found: list[list[str]] = []
    for seed in (1, 1, 2):
        found.append([])
        draw(check, lambda case: found[-1].append(digest(case)), 5, seed, (Phase.generate,))
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) > 1


def test_a_graph_has_one_of_weights_adapter_and_batch() -> None:
    one = small_case()
    assert digest(one) == digest(small_case())
    for changes in (
        {"adapter": {name: matrix + 1 for name, matrix in one.adapter.items()}},
        {"weights": {name: -stored for name, stored in one.weights.items() if isinstance(stored, np.ndarray)}},
        {"batch": dataclasses.replace(one.batch, ids=one.batch.ids[:, ::-1])},
        {"plan": one.plan.model_copy(update={"dtype": "float32"})},
        {"seed": one.seed + 1},
    ):
        assert digest(dataclasses.replace(one, **changes, _made={})) != digest(one)  # type: ignore[arg-type]


def test_a_step_has_the_same_wherever_its_run_lies() -> None:
    check = next(check for check in registry.CHECKS if check.id == "d.trajectory")
    assert check.fixed_cases is not None
    first, second = (next(check.fixed_cases()) for _ in range(2))
    assert digest(first) == digest(second)
