"""A witness is asked what a check asks of witnesses, and is no stack otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from contract.errors import MissingError
from contract.worker import discover
from contract.worker.capabilities import Capabilities
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import selection, session
from parity.cells import Device
from parity.checks import artifacts, registry
from parity.checks.check import Question
from parity.options import Options, Progress
from parity.report.record import Status
from tests.parity.artifact_stack import CAPABILITIES, WITNESS
from tests.parity.numpy_stack import configure

ASKED = [check for check in registry.CHECKS if any(plan.witness for plan in check.plans)]
OTHERS = [check for check in registry.CHECKS if check not in ASKED]


def device(name: str, capabilities: Capabilities = CAPABILITIES) -> Device:
    return Device(
        info=StackInfo(name=name, command=("nothing",), capabilities=capabilities), name="CPU", dtypes=frozenset({"float32", "float64"})
    )


def test_it_is_no_third_column() -> None:
    two, witness = [device("one"), device("two")], device("third", WITNESS)
    assert {check.id for check in ASKED} == {"e.loaded", "e.folder"}
    assert matrix.matrix(OTHERS, [*two, witness]) == matrix.matrix(OTHERS, two)
    with_it, without = (matrix.coverage(matrix.matrix(ASKED, devices)) for devices in ([*two, witness], two))
    assert {key: state for key, state in with_it.items() if "third" not in key} == without
    added = {key.partition(" | ")[2]: state for key, state in with_it.items() if key not in without and key.startswith("e.loaded |")}
    assert added == {
        "precision | float32 | third on CPU": "run",
        "same_function | float32 | one on CPU + third on CPU": "run",
        "same_function | float32 | two on CPU + third on CPU": "run",
    }


def test_what_it_does_not_score_is_a_reason() -> None:
    llama = WITNESS.model_copy(update={"scores": {"llama": ("float32",)}})
    reasons = {cell.reason for cell in matrix.matrix(ASKED, [device("third", llama)]) if cell.question is Question.PRECISION}
    assert reasons == {"third declares no scores of a gpt2 in float32"}


@pytest.mark.parametrize("request_name", ["save", "merge", "train"])
def test_a_request_that_a_stack_lacks_is_a_reason(request_name: str) -> None:
    lacking = CAPABILITIES.model_copy(update={"requests": tuple(name for name in CAPABILITIES.requests if name != request_name)})
    lost = {cell.check.id for cell in matrix.matrix(artifacts.CHECKS, [device("one", lacking)]) if request_name in cell.reason}
    assert lost == {{"save": "e.saved", "merge": "e.merged", "train": "e.checkpoint"}[request_name]}


def test_options_and_nf4_of_a_stack_that_scores_must_be_declared() -> None:
    graphs = CAPABILITIES.graphs
    assert graphs is not None
    plain = CAPABILITIES.model_copy(update={"graphs": graphs.model_copy(update={"nf4": False, "layout_options": ()})})
    cells = matrix.matrix(artifacts.CHECKS, [device("one", plain)])
    assert {cell.reason for cell in cells if cell.check.id == "e.loaded_nf4" and cell.question is Question.PRECISION} == {
        "one declares no graph with an NF4 base"
    }
    assert {cell.reason for cell in cells if cell.check.id == "e.kv_cache" and cell.question is Question.FAST_PATH} == {
        "one declares no layout option sliding_window"
    }


# Who is started


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, StackInfo]:
    """Two NumPy stacks, and a witness that is not installed."""
    found = discover.discover(configure(tmp_path, one=[], two=[]))
    witness = WITNESS.model_copy(update={"packages": ("frobnicate",), "extra": "witness"})
    stacks = {"one": found["one"], "two": found["two"], "third": StackInfo(name="third", command=("nothing",), capabilities=witness)}
    monkeypatch.setattr(discover, "discover", lambda: stacks)
    monkeypatch.setattr(discover, "installed", dict)
    monkeypatch.setattr(matrix, "COVERAGE_FILE", tmp_path / "coverage.json")
    matrix.write_coverage({})
    return stacks


def installed(info: StackInfo) -> StackInfo:
    return dataclasses.replace(info, capabilities=info.capabilities.model_copy(update={"packages": ()}))


def test_it_is_started_where_it_is_asked_for(known: dict[str, StackInfo]) -> None:
    here = {**known, "third": installed(known["third"])}
    assert set(selection.select_stacks(here, (), {}, witnesses=True)) == {"one", "two", "third"}
    assert set(selection.select_stacks(here, (), {}, witnesses=False)) == {"one", "two"}
    assert set(selection.select_stacks(here, ("one", "two"), {}, witnesses=True)) == {"one", "two"}
    assert set(selection.select_stacks(known, (), {}, witnesses=True)) == {"one", "two"}
    with pytest.raises(MissingError, match="stack third needs frobnicate"):
        selection.select_stacks(known, ("one", "third"), {}, witnesses=True)


def test_one_that_is_not_installed_is_told_where_it_would_be_asked(known: dict[str, StackInfo]) -> None:
    told = {"third": "stack third needs frobnicate, not installed here; run: pip install 'twostack[witness]'"}
    assert selection.absent_witnesses(known, (), ASKED) == told
    assert selection.absent_witnesses(known, (), OTHERS) == {}
    assert selection.absent_witnesses(known, ("one", "two"), ASKED) == {}
    assert selection.absent_witnesses({**known, "third": installed(known["third"])}, (), ASKED) == {}


def test_its_cells_are_not_covered_where_it_is_not_installed(known: dict[str, StackInfo], tmp_path: Path) -> None:
    run = session.run(Options(checks=("e.loaded",), profile="quick", waiver_file=tmp_path / "none.toml"), Progress())
    uncovered = [result for result in run.results if result.status is Status.NOT_COVERED]
    assert [(result.id, result.stacks) for result in uncovered] == [("e.loaded", ("third",))]
    assert "pip install 'twostack[witness]'" in uncovered[0].reason
    assert run.exit_code == 4
    assert [stack.name for stack in run.stacks] == ["one", "two"]
