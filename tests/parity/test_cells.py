"""The matrix of check x stack x question x device, and what coverage.json remembers of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from contract.worker.capabilities import Capabilities, Graphs
from contract.worker.discover import StackInfo, discover
from parity import cells as matrix
from parity import session
from parity.cells import Cell, Device
from parity.checks import registry
from parity.checks.check import GraphNeeds, Question
from tests.parity.numpy_stack import CAPABILITIES

BOTH = frozenset({"float32", "float64"})


def device(name: str, *, device_name: str = "CPU", dtypes: frozenset[str] = BOTH, capabilities: Capabilities = CAPABILITIES) -> Device:
    return Device(info=StackInfo(name=name, command=("nothing",), capabilities=capabilities), name=device_name, dtypes=dtypes)


def without(op: str) -> Capabilities:
    return CAPABILITIES.model_copy(update={"operations": {name: dtypes for name, dtypes in CAPABILITIES.operations.items() if name != op}})


def of(cells: list[Cell], check_id: str, question: Question) -> list[Cell]:
    return [cell for cell in cells if cell.check.id == check_id and cell.question is question]


def test_two_stacks_are_held_against_each_other_and_each_against_the_truth() -> None:
    cells = matrix.matrix(registry.CHECKS, [device("one"), device("two")])
    assert [cell.stacks for cell in of(cells, "a.matmul", Question.SAME_FUNCTION)] == [("one", "two")]
    precision = [(cell.dtype, cell.stacks) for cell in of(cells, "a.matmul", Question.PRECISION)]
    assert precision == [(dtype, (name,)) for dtype in ("float32", "float64") for name in ("one", "two")]


def test_three_stacks_make_three_pairs() -> None:
    cells = matrix.matrix(registry.CHECKS, [device(name) for name in ("one", "two", "three")])
    assert len(of(cells, "a.matmul", Question.SAME_FUNCTION)) == 3


def test_every_check_question_and_stack_has_a_cell() -> None:
    """Asked, or not applicable with a reason: nothing is left out in silence."""
    names = ("one", "two")
    cells = matrix.matrix(registry.CHECKS, [device(name) for name in names])
    for check in registry.CHECKS:
        for question in Question:
            found = of(cells, check.id, question)
            assert {stack for cell in found for stack in cell.stacks} == set(names)
            for cell in found:
                assert (cell.plan is None) == bool(cell.reason)


def test_keys_are_unique() -> None:
    cells = matrix.matrix(registry.CHECKS, [device("one"), device("two")])
    assert len(matrix.coverage(cells)) == len(cells)


def test_a_dtype_that_a_device_lacks_is_a_reason() -> None:
    cells = matrix.matrix(registry.CHECKS, [device("one", device_name="WEBGPU", dtypes=frozenset({"float32"})), device("two")])
    (cell,) = of(cells, "a.matmul", Question.SAME_FUNCTION)
    assert cell.plan is None
    assert cell.reason == "WEBGPU of one has no float64"
    assert cell.key == "a.matmul | same_function | float64 | one on WEBGPU + two on CPU"
    asked = {(cell.dtype, cell.stacks[0]) for cell in of(cells, "a.matmul", Question.PRECISION) if cell.plan is not None}
    assert asked == {("float32", "one"), ("float32", "two"), ("float64", "two")}


def test_an_operation_that_a_stack_lacks_is_a_reason_of_each_side() -> None:
    lacking = without("matmul")
    cells = matrix.matrix(registry.CHECKS, [device("one", capabilities=lacking), device("two", capabilities=lacking)])
    (cell,) = of(cells, "a.matmul", Question.SAME_FUNCTION)
    assert cell.reason == "one declares no matmul in float64; two declares no matmul in float64"
    assert all(cell.plan is not None for cell in of(cells, "a.linear", Question.PRECISION))


def test_a_fast_path_needs_the_plain_operation_too() -> None:
    cells = matrix.matrix(registry.CHECKS, [device("one", capabilities=without("linear"))])
    assert all(cell.plan is None for cell in of(cells, "b.linear", Question.FAST_PATH))


def test_a_stack_without_the_production_path_can_be_asked_for_the_function() -> None:
    """same_function asks for the plain linear in float64, which Linear4bit never computes."""
    cells = matrix.matrix(registry.CHECKS, [device("one", capabilities=without("nf4_linear")), device("two")])
    assert all(cell.plan is not None for cell in of(cells, "b.linear", Question.SAME_FUNCTION))


GRAPHS = Graphs(
    architectures={"mistral": ("float32", "float64")}, nf4=True, paths=("checkpoint",), layout_options=("sliding_window",), packing=True,
    patterns=True,
)  # fmt: skip
NEEDS = GraphNeeds(
    model_types=("mistral",), nf4=True, paths=("checkpoint",), layout_options=("sliding_window",), packing=True, patterns=True
)  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (GRAPHS, ""),
        (None, "one declares no mistral graph in float64"),
        (GRAPHS.model_copy(update={"architectures": {"mistral": ("float32",)}}), "one declares no mistral graph in float64"),
        (GRAPHS.model_copy(update={"nf4": False}), "one declares no graph with an NF4 base"),
        (GRAPHS.model_copy(update={"paths": ()}), "one declares no path checkpoint"),
        (GRAPHS.model_copy(update={"layout_options": ("rope_scaling.linear",)}), "one declares no layout option sliding_window"),
        (GRAPHS.model_copy(update={"packing": False, "patterns": False}), "one declares no packing, no patterns of rank and alpha"),
    ],
)
def test_what_a_graph_needs_and_a_stack_does_not_declare_is_a_reason(declared: Graphs | None, reason: str) -> None:
    check = next(check for check in registry.CHECKS if check.id == "c.mistral_packed")
    plan = dataclasses.replace(next(plan for plan in check.plans if plan.dtype == "float64"), graph=NEEDS)
    assert matrix.unable(check, plan, device("one", capabilities=CAPABILITIES.model_copy(update={"graphs": declared}))) == reason


def test_a_removed_check_is_lost() -> None:
    devices = [device("one"), device("two")]
    recorded = matrix.coverage(matrix.matrix(registry.CHECKS, devices))
    kept = [check for check in registry.CHECKS if check.id != "a.exp"]
    lost = matrix.lost(recorded, matrix.matrix(kept, devices), devices)
    assert lost == [key for key, state in recorded.items() if key.startswith("a.exp |") and state == "run"]
    assert lost


def test_a_cell_that_became_not_applicable_is_lost() -> None:
    devices = [device("one"), device("two")]
    recorded = matrix.coverage(matrix.matrix(registry.CHECKS, devices))
    weaker = [device("one", capabilities=without("cross_entropy")), device("two")]
    lost = matrix.lost(recorded, matrix.matrix(registry.CHECKS, weaker), weaker)
    asking = [check for check in registry.CHECKS if "cross_entropy" in check.operations]
    assert {key.split(" | ")[0] for key in lost} == {check.id for check in asking}
    assert len(lost) == sum(len(check.plans) for check in asking)


def test_what_was_not_asked_is_not_lost() -> None:
    """A run of one stack, or of another device, loses nothing of the others."""
    recorded = matrix.coverage(matrix.matrix(registry.CHECKS, [device("one"), device("two")]))
    for devices in ([device("one")], [device("one", device_name="NAN"), device("two", device_name="NAN")]):
        assert matrix.lost(recorded, matrix.matrix(registry.CHECKS, devices), devices) == []


def test_a_new_check_is_no_loss() -> None:
    devices = [device("one")]
    recorded = matrix.coverage(matrix.matrix(registry.CHECKS[1:], devices))
    assert matrix.lost(recorded, matrix.matrix(registry.CHECKS, devices), devices) == []


def test_the_default_device_is_the_first_that_is_declared() -> None:
    assert device("one").is_default
    assert not device("one", device_name="NAN").is_default


@pytest.fixture
def own_stacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The project's own stacks only, whatever parity.toml lies in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_stacks")
def test_coverage_json_is_up_to_date() -> None:
    assert matrix.read_coverage() == session.coverage_of_all(), "record it: parity coverage --write"


@pytest.mark.usefixtures("own_stacks")
def test_coverage_json_covers_both_stacks_and_gives_reasons() -> None:
    recorded = matrix.read_coverage()
    assert {stack for key in recorded for stack in (part.split(" on ")[0] for part in key.split(" | ")[3].split(" + "))} == set(discover())
    assert all(state in ("run", "nightly") or len(state) > 10 for state in recorded.values())
    assert sum(state == "run" for state in recorded.values()) > 40


def test_coverage_is_written_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matrix, "COVERAGE_FILE", tmp_path / "coverage.json")
    cells = {"a.matmul | precision | float32 | one on CPU": "run"}
    matrix.write_coverage(cells)
    assert matrix.read_coverage() == cells == json.loads((tmp_path / "coverage.json").read_text())
