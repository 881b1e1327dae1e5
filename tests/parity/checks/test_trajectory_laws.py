"""Tier D's laws, and steps that follow from each other, on stacks that are the reference but for what a test changed."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest

from contract.training.trainer import TrainerState
from parity.checks import trajectory_free, trajectory_laws, trajectory_resumed
from parity.checks.trajectory_free import INJECTED, FreeCase
from parity.checks.trajectory_laws import LawCase
from parity.judge import perturb
from parity.reference.graph_optimizer import Settings
from parity.reference.trajectory import MicroBatch
from parity.report.record import Status
from tests.parity.trajectory_gate import check_of, run
from tests.parity.trajectory_stack import TrajectoryStack


@pytest.fixture(scope="module")
def law() -> LawCase:
    """Packed and accumulated, against one batch."""
    return next(trajectory_laws.cases())


@pytest.fixture(scope="module")
def free() -> FreeCase:
    """Three steps."""
    case = next(trajectory_free.cases())
    return dataclasses.replace(case, steps=case.steps[:3], _made={})


def test_a_right_stack_keeps_the_law_of_batches(law: LawCase) -> None:
    result = run(check_of("d.law_batches", [law]), TrajectoryStack("right"))["precision", "right"]
    assert result.status is Status.PASS, result.reason
    assert result.controls.caught == result.controls.applied > 0
    assert sorted(law.one.ledger()["samples"]) == sorted(law.other.ledger()["samples"])
    assert [len(case.step.batches) for case in (law.one, law.other)] == [4, 1]


def crossing(batches: list[MicroBatch]) -> list[MicroBatch]:
    """A row's first token is learned from the row before it in the same sequence."""
    found = []
    for one in batches:
        batch, segments = one.batch, one.batch.segments
        assert segments is not None
        first = (np.diff(segments, axis=1, prepend=segments[:, :1]) > 0) & (segments > 0)
        labels = np.where(first, batch.ids, batch.labels)
        found.append(dataclasses.replace(one, batch=dataclasses.replace(batch, labels=labels)))
    return found


def alike(batches: list[MicroBatch]) -> list[MicroBatch]:
    """Each micro-batch counts for one."""
    return [*batches, *batches[:1]] if len(batches) > 1 else batches


@pytest.mark.parametrize("rebatch", [crossing, alike])
def test_the_law_of_batches_sees_what_packing_or_accumulating_changes(rebatch: object, law: LawCase) -> None:
    result = run(check_of("d.law_batches", [law]), TrajectoryStack("wrong", rebatch=rebatch))["precision", "wrong"]
    assert result.status is Status.FAIL
    assert result.reason.startswith("loss["), result.reason


def test_a_right_stack_keeps_the_law_of_resuming_and_a_wrong_one_does_not() -> None:
    (case,) = trajectory_resumed.cases()
    progress = case.run.contract.exec
    assert case.after % (case.run.steps.total // progress.epochs), "in the middle of an epoch"

    def forgot(state: TrainerState) -> TrainerState:
        return dataclasses.replace(state, v={name: 0 * matrix for name, matrix in state.v.items()})

    def miscounted(state: TrainerState) -> TrainerState:
        return dataclasses.replace(state, updates=state.updates + 1)

    check = check_of("d.law_resumed", [case])
    result = run(check, TrajectoryStack("right"))["precision", "right"]
    assert result.status is Status.PASS, result.reason
    assert result.controls.caught == result.controls.applied > 0
    for restored, first in ((forgot, "grad_norm["), (miscounted, "updates[")):
        result = run(check, TrajectoryStack("wrong", restored=restored))["precision", "wrong"]
        assert result.status is Status.FAIL
        assert result.reason.startswith((first, "loss[", "m[")), result.reason


def test_both_runs_may_not_take_the_rate_of_another_step() -> None:
    """They share the loop that reads the table, so that nothing else of this law sees it."""
    (case,) = trajectory_resumed.cases()
    rates = case.run.learning_rates
    assert trajectory_resumed._rates(case, rates[case.after :]).passed
    assert not trajectory_resumed._rates(case, rates[case.after - 1 : -1]).passed


def test_a_run_that_fails_is_no_verdict() -> None:
    (case,) = trajectory_resumed.cases()
    result = run(check_of("d.law_resumed", [case]), TrajectoryStack("wrong", fails="train"))["precision", "wrong"]
    assert result.status is Status.ERROR
    assert "it does not like that" in result.reason


def test_steps_that_follow_from_each_other(free: FreeCase) -> None:
    """Right stacks pass; one whose decay is off by a billionth does not, and its error is no larger than the others' growth by much."""

    def off(settings: Settings) -> Settings:
        return dataclasses.replace(settings, weight_decay=settings.weight_decay * (1 + 1e-9))

    check = check_of("d.free_running", [free])
    results = run(check, TrajectoryStack("one"), TrajectoryStack("two"))
    assert len(results) == 3
    for result in results.values():
        assert result.status is Status.PASS, result.reason
        assert result.controls.caught == result.controls.applied > 0
    result = run(check, TrajectoryStack("wrong", change=off))["precision", "wrong"]
    assert result.status is Status.FAIL


def test_growth_is_linear_where_the_perturbed_runs_are(free: FreeCase) -> None:
    """The same errors, eight times as large, respond alike per unit of u: by less than a limit's head-room, and far from twice."""

    def response(injected: float) -> perturb.Response:
        return perturb.respond_to(free.compute, rows=trajectory_free.AT_ONCE, runs=5, seed=1, ulp=1.0, injected=injected)[1]

    small, large = response(INJECTED), response(8 * INJECTED)
    for name, rows in small.rows.items():
        assert np.all(np.abs(large.rows[name] - rows) <= 0.5 * rows), name


def test_every_run_of_a_perturbed_trajectory_goes_its_own_way(free: FreeCase) -> None:
    """Together or one by one: the same runs, since a run's errors are drawn from its own seed."""
    together = perturb.respond_to(free.compute, rows=1, runs=3, seed=4, ulp=1.0, injected=INJECTED)[1]
    alone = perturb.respond_to(free.compute, rows=perturb.ROWS_AT_ONCE, runs=3, seed=4, ulp=1.0, injected=INJECTED)[1]
    for name, rows in together.rows.items():
        assert np.all(np.abs(alone.rows[name] - rows) <= 2.0**-8 * rows), name  # float64 itself errs by 2^-53 beside 2^-44


def test_the_lengths_cover_an_epochs_end() -> None:
    short, whole = trajectory_free.cases()
    assert {step.epoch for step in short.steps} == {0, 1}
    assert len(list(islice(whole.run.steps.steps(), 100))) == len(whole.steps)
