"""Killed only where a cell that passes without the mutant fails with it, in a run that came to its end."""

from __future__ import annotations

import pytest

from contract.worker.answers import WorkerDied
from contract.worker.process import StackProcess
from parity.mutants.catalogue import CONTRACT
from parity.mutants.facts import Facts
from parity.mutants.verdicts import Verdict, judge, together
from parity.report.record import Status
from tests.parity.mutants.askables import BROKEN, CRASHED, GREEN, HUNG, RED, cell, done, error_of, mutant


@pytest.mark.parametrize(
    ("planted", "clean", "verdict"),
    [
        (RED, GREEN, Verdict.KILLED),
        (GREEN, GREEN, Verdict.SURVIVED),
        (BROKEN, GREEN, Verdict.CRASHED),
        (CRASHED, GREEN, Verdict.CRASHED),
        (HUNG, GREEN, Verdict.HUNG),
        (RED, RED, Verdict.RED_WITHOUT),
        (RED, BROKEN, Verdict.RED_WITHOUT),
        (RED, CRASHED, Verdict.RED_WITHOUT),
        (RED, HUNG, Verdict.RED_WITHOUT),
        (GREEN, RED, Verdict.RED_WITHOUT),
        (done(cell(Status.NOT_COVERED)), GREEN, Verdict.CRASHED),
        (RED, done(cell(Status.NOT_COVERED)), Verdict.RED_WITHOUT),
        (done(cell(Status.NOT_APPLICABLE)), done(cell(Status.NOT_APPLICABLE)), Verdict.UNASKED),
        (done(cell(Status.LEFT_TO_NIGHTLY)), done(cell(Status.LEFT_TO_NIGHTLY)), Verdict.UNASKED),
        (done(), done(), Verdict.UNASKED),
        # a failure of a cell that was waived, or not there, without the mutant says nothing of it
        (RED, done(cell(Status.WAIVED)), Verdict.CRASHED),
        (RED, done(cell(Status.PASS, stacks=("two",))), Verdict.CRASHED),
    ],
)
def test_of_one_check(planted: Facts, clean: Facts, verdict: Verdict) -> None:
    (one,) = judge(mutant(), ["a.matmul"], ["one"], planted, clean)
    assert one.verdict is verdict


def test_what_killed_is_told() -> None:
    (one,) = judge(mutant(), ["a.matmul"], ["one"], RED, GREEN)
    assert (one.tier, one.tap, one.examples, one.cell) == ("A", "y", 5, "precision float32 one")
    assert one.reason.startswith("y[0]")


def test_a_failure_beside_an_error_kills() -> None:
    both = done(*RED.cells, cell(Status.ERROR, stacks=("one", "two"), reason="one: died"))
    clean = done(*GREEN.cells, cell(Status.PASS, stacks=("one", "two")))
    assert judge(mutant(), ["a.matmul"], [], both, clean)[0].verdict is Verdict.KILLED


def test_a_failure_of_a_stack_that_it_does_not_change_kills_nothing() -> None:
    planted, clean = done(cell(Status.FAIL, stacks=("two",))), done(cell(Status.PASS, stacks=("two",)))
    assert judge(mutant(stacks=("one",)), ["a.matmul"], [], planted, clean)[0].verdict is Verdict.CRASHED
    assert judge(mutant(stacks=("one", "two")), ["a.matmul"], [], planted, clean)[0].verdict is Verdict.KILLED
    assert judge(mutant(stacks=(CONTRACT,)), ["a.matmul"], [], planted, clean)[0].verdict is Verdict.KILLED


def test_a_worker_that_hung_is_told_from_one_that_died() -> None:
    """By the message that the launcher gives, so that the two can't drift apart."""
    process = StackProcess("one", ["true"], "CPU")
    process._ended = lambda message: message  # type: ignore[method-assign]
    hung = process._hung(120.0, "to answer")
    assert judge(mutant(), ["a.matmul"], ["one"], error_of(hung), GREEN)[0].verdict is Verdict.HUNG
    died = WorkerDied("one: the worker ended with exit code 7")
    assert judge(mutant(), ["a.matmul"], ["one"], error_of(died), GREEN)[0].verdict is Verdict.CRASHED


@pytest.mark.parametrize(
    ("of_checks", "verdict"),
    [
        ((RED, GREEN), Verdict.KILLED),
        ((GREEN, RED), Verdict.KILLED),
        ((CRASHED, RED), Verdict.KILLED),
        ((GREEN, CRASHED), Verdict.CRASHED),
        ((GREEN, HUNG), Verdict.HUNG),
        ((GREEN, GREEN), Verdict.SURVIVED),
        ((), Verdict.SURVIVED),
    ],
)
def test_of_several_checks(of_checks: tuple[Facts, ...], verdict: Verdict) -> None:
    assert together([judge(mutant(), ["a.matmul"], ["one"], facts, GREEN)[0] for facts in of_checks]) is verdict


def test_a_check_that_is_red_without_it_leaves_a_mutant_alive() -> None:
    assert together(judge(mutant(), ["a.matmul"], ["one"], RED, RED)) is Verdict.SURVIVED
