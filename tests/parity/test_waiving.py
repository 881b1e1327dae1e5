"""Waivers on results: a failure is accepted for its time, by name; what else a cell has to say stays red."""

from __future__ import annotations

import datetime

import pytest

from parity import waiving
from parity.judge.waivers import Waiver
from parity.report.record import Result, Status, exit_code

TODAY = datetime.date(2030, 6, 15)


def waiver(check: str = "a.matmul", stack: str = "torch_qlora", days: int = 1) -> Waiver:
    return Waiver(check=check, stack=stack, reason="issue 17", owner="ada", expires=TODAY + datetime.timedelta(days=days))


def result(status: Status, *, check: str = "a.matmul", beneath: Status | None = None) -> Result:
    return Result(
        id=check, tier="A", title="it", stacks=("tinygrad_lora", "torch_qlora"), question="precision", device=("CPU", "CPU"),
        dtype="float32", status=status, reason="y: 2 where 1 was right", beneath=beneath,
    )  # fmt: skip


def applied(*results: Result, accepted: tuple[Waiver, ...] = (waiver(),)) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    return waiving.apply(results, accepted, {"torch_qlora", "tinygrad_lora"}, {"a.matmul", "a.exp", "c.run"}, TODAY)


def test_a_waived_failure_shows_as_waived_with_its_owner() -> None:
    (got,), problems = applied(result(Status.FAIL))
    assert got.status is Status.WAIVED
    assert got.reason == "issue 17 (ada, until 2030-06-16); y: 2 where 1 was right"
    assert problems == ()
    assert exit_code((got,), problems) == 0


@pytest.mark.parametrize(("status", "code"), [(Status.ERROR, 3), (Status.NOT_COVERED, 4)])
def test_an_error_and_what_is_not_covered_are_never_waived(status: Status, code: int) -> None:
    """Neither by itself, where the waiver is one that is not used, nor beneath a failure."""
    (alone,), problems = applied(result(status))
    assert alone.status is status
    assert problems == ("the waiver of a.matmul for torch_qlora is not used; remove it",)
    (beneath,), problems = applied(result(Status.FAIL, beneath=status))
    assert beneath.status is status
    assert beneath.reason.startswith("issue 17 (ada, until 2030-06-16); y: 2")
    assert problems == ()
    assert exit_code((beneath,), problems) == code


@pytest.mark.parametrize("status", [Status.FAIL, Status.PASS])
def test_an_expired_one_accepts_nothing(status: Status) -> None:
    (got,), problems = applied(result(status), accepted=(waiver(days=-1),))
    assert got.status is status
    assert problems == ("the waiver of a.matmul for torch_qlora expired on 2030-06-14; ada is to say what now",)
    assert exit_code((got,), problems) == 1


def test_the_day_of_expiry_is_its_last() -> None:
    (got,), problems = applied(result(Status.FAIL), accepted=(waiver(days=0),))
    assert (got.status, problems) == (Status.WAIVED, ())


def test_a_users_own_run_can_be_waived_and_is_known_without_a_contract() -> None:
    (got,), problems = applied(result(Status.FAIL, check="c.run"), accepted=(waiver("c.run"),))
    assert (got.status, problems) == (Status.WAIVED, ())
    accepted = (waiver("c.run"), waiver("d.run"), waiver("d.run_float32"), waiver("d.walk"))
    _, problems = waiving.apply([result(Status.PASS)], accepted, {"torch_qlora"}, {"a.matmul"}, TODAY)
    assert problems == ("the waiver of d.walk for torch_qlora names a check or a stack that there is none of; correct it",)


def test_where_some_cells_alone_are_asked_their_waivers_alone_must_be_used() -> None:
    cells = {("a.matmul", "precision", "float32", ("torch_qlora",), ("CPU",))}
    accepted = waiver(), waiver("a.exp"), waiver(stack="tinygrad_lora")
    checks, stacks = {"a.matmul", "a.exp"}, {"torch_qlora", "tinygrad_lora"}
    _, problems = waiving.apply([result(Status.PASS)], accepted, stacks, checks, TODAY, cells=cells)
    assert problems == ("the waiver of a.matmul for torch_qlora is not used; remove it",)
