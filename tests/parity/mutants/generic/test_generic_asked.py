"""What the process of one mutant asks, on a stack in NumPy as a worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract.worker.discover import StackInfo
from parity.mutants.generic import asked
from parity.mutants.generic.asked import Planted, Request, Said, ask
from parity.report.record import Status
from tests.parity.numpy_stack import CAPABILITIES

WORKER = Path(__file__).parents[1] / "planted_stack.py"
MODULE = "tests.parity.mutants.planted_arithmetic"
CHECKS = ("a.matmul_exact", "a.matmul")


@pytest.fixture(autouse=True)
def one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    info = StackInfo(name="numpy", command=(sys.executable, str(WORKER)), capabilities=CAPABILITIES)
    monkeypatch.setattr(asked, "_chosen", lambda request: {"numpy": (info, "CPU")})


def asking(tmp_path: Path, replace: str) -> list[Said]:
    planted = Planted(stack="numpy", module=MODULE, find="return a @ b", replace=replace)
    return list(ask(Request(planted=planted, checks=CHECKS, profile="quick", seed=1, said=tmp_path / "said")))


def test_the_first_check_that_fails_is_the_last(tmp_path: Path) -> None:
    (said,) = asking(tmp_path, "return a @ b * 1.001")
    assert said.check == CHECKS[0]
    assert said.alone
    assert Status.FAIL in {cell.status for cell in said.cells}
    assert all(not cell.faults for cell in said.cells)


def test_a_mutant_that_changes_nothing_is_asked_of_all(tmp_path: Path) -> None:
    said = asking(tmp_path, "return a.astype(a.dtype) @ b")
    assert [one.check for one in said] == list(CHECKS)
    assert {cell.status for one in said for cell in one.cells} == {Status.PASS}
    assert not any(one.stops for one in said)


def test_an_exception_in_the_stack_is_an_error_of_the_check(tmp_path: Path) -> None:
    (said,) = asking(tmp_path, "return a @ b.nothing")
    assert {cell.status for cell in said.cells} == {Status.ERROR}
    assert said.stops


def test_a_mutant_that_keeps_its_stack_from_starting_has_crashed(tmp_path: Path) -> None:
    (said,) = asking(tmp_path, "return a @ b\n\n\nraise OSError")
    assert said.check == ""
    assert "OSError" in said.crash
