"""Tier D on stacks that are the reference but for what a test changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pytest

from contract.worker.capabilities import Capabilities
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity.cells import Device
from parity.checks import registry, trajectory_case
from parity.checks.check import Check
from parity.checks.trajectory_case import Dtype, StepCase
from parity.checks.trajectory_run import LLAMA
from parity.judge import perturb
from parity.reference.graph_optimizer import Settings
from parity.reference.trajectory import MicroBatch
from parity.report.record import Status
from tests.parity import trajectory_gate
from tests.parity.trajectory_gate import run
from tests.parity.trajectory_stack import CAPABILITIES, TrajectoryStack

BINDS, FREE = 1, 2
"""Steps, from 0, of which the first is clipped and the second is not."""


@pytest.fixture(scope="module")
def steps() -> dict[str, list[StepCase]]:
    """All steps of both checks; what is computed of one is kept, as a run would not."""
    return {"float64": of_run("float64"), "float32": of_run("float32")}


def of_run(dtype: Dtype) -> list[StepCase]:
    """Without the two cases that show what decays."""
    _, run = trajectory_case.opened_run(LLAMA, dtype)
    return list(trajectory_case.steps_of(run))


def check_of(check_id: str, steps: Mapping[str, list[StepCase]], numbers: slice) -> Check:
    return trajectory_gate.check_of(check_id, steps["float32" if check_id.endswith("float32") else "float64"][numbers])


def test_right_stacks_pass(steps: Mapping[str, list[StepCase]]) -> None:
    for check_id, questions in (("d.trajectory", 3), ("d.trajectory_float32", 2)):
        one, two = TrajectoryStack("one"), TrajectoryStack("two")
        results = run(check_of(check_id, steps, slice(0, 2)), one, two)
        assert len(results) == questions
        for result in results.values():
            assert result.status is Status.PASS, result.reason
            assert result.examples == 2
            assert result.controls.caught == result.controls.applied > 0
        assert one.asked.count("train_open") == 1, "a session is opened once, and serves all steps"


def by(**changes: float) -> Callable[[Settings], Settings]:
    """Settings with numbers off by a factor."""
    return lambda settings: dataclasses.replace(settings, **{name: getattr(settings, name) * factor for name, factor in changes.items()})


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (by(beta1=1 + 1e-9), "m."), (by(beta2=1 + 1e-9), "v."), (by(eps=1 + 1e-3), "adapter."), (by(lr=1 + 1e-9), "adapter."),
        (by(weight_decay=1 + 1e-9), "adapter."), (by(max_norm=1 + 1e-9), "m."),
    ],
)  # fmt: skip
def test_a_number_that_is_a_little_off_is_seen(
    change: Callable[[Settings], Settings], first: str, steps: Mapping[str, list[StepCase]]
) -> None:
    stacks = TrajectoryStack("right"), TrajectoryStack("wrong", change=change)
    results = run(check_of("d.trajectory", steps, slice(BINDS, BINDS + 1)), *stacks)
    assert results["precision", "right"].status is Status.PASS
    for key in (("same_function", "right", "wrong"), ("precision", "wrong")):
        assert results[key].status is Status.FAIL
        assert results[key].reason.startswith(first), "m and v are looked at before the weights that follow from them"
        assert "on step 2 of 20" in results[key].reason


def test_a_limit_on_the_norm_shows_where_it_binds_alone(steps: Mapping[str, list[StepCase]]) -> None:
    result = run(check_of("d.trajectory", steps, slice(FREE, FREE + 1)), TrajectoryStack("wrong", change=by(max_norm=1 + 1e-9)))
    assert result["precision", "wrong"].status is Status.PASS


def test_a_micro_batch_that_is_left_out_or_counted_alone_is_seen(steps: Mapping[str, list[StepCase]]) -> None:
    def alone(batches: list[MicroBatch]) -> list[MicroBatch]:
        return batches[:1]

    def swapped(batches: list[MicroBatch]) -> list[MicroBatch]:
        return batches[::-1]

    check = check_of("d.trajectory", steps, slice(3, 4))
    assert run(check, TrajectoryStack("wrong", rebatch=alone))["precision", "wrong"].status is Status.FAIL
    assert run(check, TrajectoryStack("right", rebatch=swapped))["precision", "right"].status is Status.PASS, "a sum has no order"


ANSWERED = ("loss", "grad_norm", "learning_rate", "tokens", "batch_tokens", "samples", "batches", "updates")


@pytest.mark.parametrize("name", [*ANSWERED, "m.layers.1.v_proj.lora_b", "v.layers.0.up_proj.lora_a", "adapter.layers.1.down_proj.lora_b"])
def test_every_answer_is_looked_at(name: str, steps: Mapping[str, list[StepCase]]) -> None:
    """One element off by the least, or by a billionth; NaN where there can be one."""

    def off(of: str, value: np.ndarray) -> np.ndarray:
        changed = value.copy()
        if of == name:
            changed.reshape(-1)[-1] += 1 if value.dtype.kind in "iu" else 1e-9 * (1e-9 + abs(value.reshape(-1)[-1]))
        return changed

    def lost(of: str, value: np.ndarray) -> np.ndarray:
        return np.where(value == value, np.nan, value) if of == name else value

    check = check_of("d.trajectory", steps, slice(3, 4))
    for spoil in (off, lost) if name not in ("tokens", "batch_tokens", "samples", "batches", "updates") else (off,):
        results = run(check, TrajectoryStack("right"), TrajectoryStack("wrong", spoil=spoil))
        assert results["same_function", "right", "wrong"].status is Status.FAIL
        assert results["precision", "wrong"].status is Status.FAIL
        assert results["precision", "wrong"].reason.startswith(f"{name}["), results["precision", "wrong"].reason


def test_a_longer_or_shorter_ledger_diverges(steps: Mapping[str, list[StepCase]]) -> None:
    check = check_of("d.trajectory", steps, slice(3, 4))
    changes: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        lambda ids: ids[:-1],
        lambda ids: np.append(ids, 7),
        lambda ids: np.append(ids, -1),
    )
    for change in changes:
        stack = TrajectoryStack("wrong", spoil=lambda name, value, change=change: change(value) if name == "samples" else value)  # type: ignore[misc]
        result = run(check, stack)["precision", "wrong"]
        assert result.status is Status.FAIL
        assert result.reason.startswith("samples[")


def test_the_state_that_a_session_begins_with_is_looked_at(steps: Mapping[str, list[StepCase]]) -> None:
    """After the first step nobody would see it, since each step is given its state."""
    asked = iter(range(100))

    def spoil(name: str, value: np.ndarray) -> np.ndarray:
        first = name == "v.layers.0.q_proj.lora_a" and next(asked) == 0
        return value + 1e-300 if first else value

    result = run(check_of("d.trajectory", steps, slice(0, 2)), TrajectoryStack("wrong", spoil=spoil))["precision", "wrong"]
    assert result.status is Status.FAIL
    assert result.reason.startswith("initial.v[")


@pytest.mark.parametrize(
    ("wrong", "said"), [({"drop": "loss"}, "answered loss as None"), ({"fails": "train_step"}, "it does not like that")]
)
def test_an_answer_that_is_none_is_no_verdict(wrong: dict[str, Any], said: str, steps: Mapping[str, list[StepCase]]) -> None:
    result = run(check_of("d.trajectory", steps, slice(1, 2)), TrajectoryStack("wrong", **wrong))["precision", "wrong"]
    assert result.status is Status.ERROR
    assert said in result.reason


def test_what_is_not_asked_says_why() -> None:
    check = next(check for check in registry.CHECKS if check.id == "d.trajectory")

    def reasons(capabilities: Capabilities, dtypes: frozenset[str] = frozenset({"float32", "float64"})) -> set[str]:
        info = StackInfo(name="one", command=("nothing",), capabilities=capabilities)
        found = matrix.matrix([check], [Device(info=info, name="CPU", dtypes=dtypes)])
        return {cell.reason for cell in found if cell.question == "precision"}

    assert CAPABILITIES.training is not None
    without = CAPABILITIES.model_copy(update={"training": CAPABILITIES.training.model_copy(update={"sessions": ("float32",)})})
    assert reasons(CAPABILITIES) == {""}
    assert reasons(CAPABILITIES, frozenset({"float32"})) == {"CPU of one has no float64"}
    assert reasons(without) == {"one declares no training session of llama in float64"}
    assert reasons(CAPABILITIES.model_copy(update={"training": None})) == {"one declares no training session of llama in float64"}


def test_the_run_has_what_it_is_there_for(steps: Mapping[str, list[StepCase]]) -> None:
    """Ragged counts, short last steps, warm-up from 0, truncated rows; and clipping in some steps, never by a hair."""
    for cases in steps.values():
        assert len(cases) == LLAMA.steps
        run = cases[0].run
        limit = run.contract.exec.max_grad_norm
        norms = [float(case.exact()["grad_norm"]) for case in cases]
        assert 4 <= sum(norm > limit for norm in norms) <= LLAMA.steps - 4
        assert min(abs(norm / limit - 1) for norm in norms) > 1e-3, "no response to first order holds where an error decides"
        assert norms[BINDS] > limit
        assert norms[FREE] < limit
        assert cases[0].rate == 0 < cases[1].rate < cases[4].rate == run.contract.exec.learning_rate
        assert sum(len({batch.tokens for batch in case.step.batches}) > 1 for case in cases) > LLAMA.steps // 2
        assert {len(case.step.batches[-1].ids_BT) for case in cases} == {2, 3}
        assert {case.step.epoch for case in cases} == set(range(5))
        assert [case.before.updates for case in cases] == [0, 1, 2, *range(2, LLAMA.steps - 1)]
        assert all(matrix.dtype == run.plan.dtype for case in cases for matrix in case.before.m.values())
        longest = max(int(batch.lengths_B.max()) for case in cases for batch in case.step.batches)
        assert longest == run.contract.exec.seq_len


def test_the_same_run_is_drawn_each_time() -> None:
    first, second = (next(islice(trajectory_case.cases(LLAMA, "float64"), 6, 7)) for _ in range(2))
    assert all(np.array_equal(first.inputs["float64"][name], array) for name, array in second.inputs["float64"].items())
    assert {name: array.tolist() for name, array in first.ledger().items()} == {name: it.tolist() for name, it in second.ledger().items()}


def test_the_references_own_perturbed_runs_stay_inside(steps: Mapping[str, list[StepCase]]) -> None:
    """Other seeds than those behind the limits: no row leaves a limit that one in a million may."""
    case = steps["float64"][5]
    limits = case.response(1.0)
    for seed in range(1000, 1004):
        _, other = perturb.respond_to(case.compute, rows=perturb.ROWS_AT_ONCE, runs=1, seed=seed, ulp=1.0)
        for name, found in limits.rows.items():
            allowed = perturb.row_limits(found, dtype="float64", runs=limits.runs, false_alarm=1e-6)
            assert np.all(other.rows[name] * 2.0**-53 <= allowed), name


def test_exact_rows_are_zero_where_nothing_is_learned(steps: Mapping[str, list[StepCase]]) -> None:
    """B = 0 and a learning rate of 0: A's gradient, m and v are zero, and no weight may move by a bit."""
    response = steps["float64"][0].response(1.0)
    for name in steps["float64"][0].run.initial:
        assert not np.any(response.rows[f"adapter.{name}"])
        assert np.any(response.rows[f"m.{name}"]) == name.endswith("lora_b")
