"""What an upgrade changes, on stacks in NumPy: one rounds otherwise, one is wrong, one shows a defect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from contract.errors import MissingError, UserError
from contract.worker import discover
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import session, workers
from parity.capture import environments
from parity.capture.upgrade import Upgrade
from parity.options import Options, Progress
from parity.report import captures
from parity.report.record import Status
from tests.parity.capture.answering import Probe, sets
from tests.parity.numpy_stack import CAPABILITIES, SPOILT, Arrays

DEFECT = "bitsandbytes-cpu-dequantize-shape"
Compare = Callable[..., Upgrade]


def one_ulp_up(answer: Arrays) -> Arrays:
    """Another rounding: the gradient of SiLU may err by more, but at zero."""
    x_grad = answer["x_grad"]
    return {**answer, "x_grad": np.where(x_grad == 0, x_grad, np.nextafter(x_grad, np.inf, dtype=x_grad.dtype))}


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """compare(spoilt, probes, ...): the stacks `old` and `new`, and how their answers and probes differ."""
    known = {name: StackInfo(name=name, command=(name,), capabilities=CAPABILITIES) for name in ("new", "old")}
    monkeypatch.setattr(discover, "discover", lambda: known)
    monkeypatch.setattr(discover, "installed", lambda: known)
    monkeypatch.setattr(matrix, "COVERAGE_FILE", tmp_path / "coverage.json")
    matrix.write_coverage(session.coverage_of_all())

    def run(spoilt: Mapping[str, Any], probes: Mapping[str, Probe] | None = None, *, op: str = "embedding", **more: Any) -> Upgrade:
        monkeypatch.setattr(workers, "sets", sets(spoilt, probes, only=op))
        options = Options(**{"checks": (f"a.{op}",), "profile": "quick", "waiver_file": tmp_path / "none.toml", **more})
        return environments.compare("old", "new", options, Progress())

    return run


def shown(found: Upgrade, tmp_path: Path) -> str:
    with open(tmp_path / "shown.txt", "w+") as file:
        captures.show_upgrade(found, Console(file=file, width=160))
        file.seek(0)
        return file.read()


def test_nothing_changed_is_said_plainly(compare: Compare, tmp_path: Path) -> None:
    found = compare({})
    assert found.exit_code == 0
    assert found.unchanged
    assert found.tensors > 0
    assert found.elements > 0
    assert "NOTHING CHANGED" in shown(found, tmp_path)
    assert "every one is the same" in shown(found, tmp_path)


def test_another_rounding_is_told_bit_by_bit_and_is_not_worse(compare: Compare, tmp_path: Path) -> None:
    found = compare({"new": one_ulp_up}, op="silu")
    assert found.exit_code == 0
    assert not found.unchanged
    assert found.verdicts == ()
    assert {(one.tensor, one.dtype, one.ulp, one.nan) for one in found.bits} == {
        ("x_grad", "float32", 1, 0),
        ("x_grad", "float64", 1, 0),
    }
    assert all(0 < one.differ <= one.elements for one in found.bits)
    assert "CHANGED, NOTHING WORSE" in shown(found, tmp_path)


@pytest.mark.parametrize(("which", "code", "word"), [("new", 1, "WORSE"), ("old", 0, "NOTHING WORSE")])
def test_a_verdict_that_is_worse_is_exit_1_and_one_that_is_better_is_not(
    compare: Compare, tmp_path: Path, which: str, code: int, word: str
) -> None:
    found = compare({which: SPOILT["NEGATED"]})
    assert found.exit_code == code
    assert {one.worse for one in found.verdicts} == {which == "new"}
    assert {str(one.new if which == "new" else one.old) for one in found.verdicts} == {"fail"}
    assert word in shown(found, tmp_path)


def test_a_nan_is_counted_apart(compare: Compare) -> None:
    found = compare({"new": SPOILT["NAN"]})
    assert {one.nan for one in found.bits if one.tensor == "y"} == {12}
    assert found.exit_code == 1


@pytest.mark.parametrize(
    ("old", "new", "code", "word"), [(False, True, 1, "appears"), (True, False, 0, "vanishes"), (True, True, 0, "both")]
)
def test_a_known_defect_appears_or_vanishes(compare: Compare, tmp_path: Path, old: bool, new: bool, code: int, word: str) -> None:
    found = compare({}, {"old": {"defects": {DEFECT: old}}, "new": {"defects": {DEFECT: new}}})
    assert found.exit_code == code
    (change,) = found.defects
    assert (change.appears, change.vanishes) == (new and not old, old and not new)
    assert word in shown(found, tmp_path)
    assert DEFECT in shown(found, tmp_path)
    assert "dequantize_4bit" in change.what


def test_versions_that_differ_are_told(compare: Compare, tmp_path: Path) -> None:
    found = compare({}, {"old": {"versions": {"abacus": "1"}}, "new": {"versions": {"abacus": "2", "beads": "7"}}})
    assert [(one.package, one.old, one.new) for one in found.versions] == [("abacus", "1", "2"), ("beads", "absent", "7")]
    assert "abacus 1 -> 2" in shown(found, tmp_path)
    assert found.exit_code == 0


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_stack_that_fails_to_answer_is_exit_3(compare: Compare, which: str) -> None:
    def fails(answer: Arrays) -> Arrays:
        raise ArithmeticError("the sum is odd")

    found = compare({which: fails})
    assert found.exit_code == 3
    assert any("the sum is odd" in text for text in found.unmatched)
    assert Status.ERROR.value in {str(one.old if which == "old" else one.new) for one in found.verdicts}


def test_a_divergence_comes_before_an_error(compare: Compare) -> None:
    found = compare({"new": SPOILT["SHAPE"]}, {"new": {"defects": {DEFECT: True}}})
    assert Status.ERROR in found.statuses
    assert found.exit_code == 1


def test_the_json_holds_everything(compare: Compare, tmp_path: Path) -> None:
    found = compare({"new": SPOILT["NEGATED"]})
    captures.write(found, tmp_path / "up.json")
    assert Upgrade.model_validate(json.loads((tmp_path / "up.json").read_text())) == found


def test_an_environment_that_is_none_is_refused(compare: Compare) -> None:
    compare({})
    with pytest.raises(UserError, match=r"'nowhere' is no stack of parity.toml, and no virtual environment is there"):
        environments.compare("old", "nowhere", Options(checks=("a.embedding",)), Progress())


def test_a_package_that_one_lacks_is_missing(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    compare({})
    lacking = CAPABILITIES.model_copy(update={"packages": ("frobnicate",)})
    known = {**discover.discover(), "new": StackInfo(name="new", command=("new",), capabilities=lacking)}
    monkeypatch.setattr(discover, "discover", lambda: known)
    with pytest.raises(MissingError, match="needs frobnicate"):
        environments.compare("old", "new", Options(checks=("a.embedding",)), Progress())


def test_a_mutant_of_a_stack_that_is_not_compared_is_refused(compare: Compare) -> None:
    with pytest.raises(UserError, match="torch_qlora"):
        compare({}, mutants=("torch-bfloat16-operand",))
