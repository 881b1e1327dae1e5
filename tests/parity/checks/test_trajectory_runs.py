"""The other runs of tier D on stacks that are the reference but for what a test changed: packed, with dropout, of tiny gradients, proxy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from parity.checks import trajectory_case
from parity.checks.trajectory_case import StepCase
from parity.checks.trajectory_run import GPT2, LLAMA, NARROW, PACKED, PROXY, RAGGED, RUNS, WHOLE, TrainingRun
from parity.reference.graph_linear import Dropout
from parity.reference.graph_optimizer import Settings
from parity.reference.trajectory import MicroBatch
from parity.report.record import Status
from tests.parity.trajectory_gate import check_of, run
from tests.parity.trajectory_stack import TrajectoryStack

EMPTY = 7
"""Of GPT2: a step with nothing to learn."""


@pytest.fixture(scope="module")
def steps() -> dict[str, list[StepCase]]:
    """All cases of each run in float64."""
    return {spec.name: list(trajectory_case.cases(spec, "float64")) for spec in (PACKED, GPT2, PROXY)}


@pytest.mark.parametrize("spec", [*RUNS, WHOLE, RAGGED], ids=lambda spec: spec.name)
def test_a_run_has_the_steps_that_the_table_says(spec: TrainingRun) -> None:
    _, prepared = trajectory_case.opened_run(spec, "float32")
    assert prepared.steps.total == spec.steps
    assert all(number < spec.steps for number in spec.asked)


def test_the_runs_have_what_they_are_there_for(steps: dict[str, list[StepCase]]) -> None:
    packed, gpt2, proxy = (steps[spec.name] for spec in (PACKED, GPT2, PROXY))
    several = [len(sequence) for case in packed for batch in case.step.batches for sequence in batch.samples]
    assert {1, 2} <= set(several)
    assert all(len({batch.tokens for batch in case.step.batches}) > 1 for case in packed), "ragged counts"
    assert all(case.exact()["grad_norm"] > 1.001 * packed[0].run.contract.exec.max_grad_norm for case in packed), "it binds"
    assert {len(case.step.batches) for case in gpt2} == {0, 1, 2}
    assert gpt2[EMPTY].step.skipped
    assert gpt2[EMPTY].rate > 0
    for spec in (PACKED, GPT2, PROXY, NARROW):
        assert 0 < spec.fields["adapter"]["dropout"] != 0.5
    roots = np.concatenate([np.sqrt(matrix).reshape(-1) for matrix in gpt2[4].before.v.values()])
    assert 1e-10 < np.median(roots[roots > 0]) < 1e-7, "as small as eps"
    assert {len(case.step.batches[-1].ids_BT) for case in proxy} == {1, 2}, "an epoch's end"
    assert len({case.step.epoch for case in gpt2}) == len({case.step.epoch for case in proxy}) == 2


def test_right_stacks_pass(steps: dict[str, list[StepCase]]) -> None:
    for spec, numbers in ((PACKED, [0, 2]), (GPT2, [5, EMPTY]), (PROXY, [1])):
        check = check_of(f"d.trajectory_{spec.name}", [steps[spec.name][number] for number in numbers])
        results = run(check, TrajectoryStack("one"), TrajectoryStack("two"))
        assert len(results) == 3
        for result in results.values():
            assert result.status is Status.PASS, result.reason
            assert result.controls.caught == result.controls.applied > 0


def undropped(batches: list[MicroBatch]) -> list[MicroBatch]:
    return [dataclasses.replace(batch, dropout=None) for batch in batches]


def halved(batches: list[MicroBatch]) -> list[MicroBatch]:
    """Scaled as if half were kept."""
    return [dataclasses.replace(batch, dropout=Dropout(keep=batch.dropout.keep, probability=0.5)) for batch in batches if batch.dropout]


def one_segment(batches: list[MicroBatch]) -> list[MicroBatch]:
    """The rows of a sequence see each other."""
    return [
        dataclasses.replace(one, batch=dataclasses.replace(one.batch, segments=np.minimum(one.batch.segments, 0)))  # type: ignore[type-var]
        for one in batches
    ]


@pytest.mark.parametrize("rebatch", [undropped, halved, one_segment, lambda batches: batches[:-1]])
def test_what_is_wrong_with_packed_micro_batches_is_seen(rebatch: object, steps: dict[str, list[StepCase]]) -> None:
    stack = TrajectoryStack("wrong", rebatch=rebatch)
    assert run(check_of("d.trajectory_packed", steps["packed"][2:3]), stack)["precision", "wrong"].status is Status.FAIL


def test_eps_off_by_a_millionth_shows_where_gradients_are_as_small(steps: dict[str, list[StepCase]]) -> None:
    def off(settings: Settings) -> Settings:
        return dataclasses.replace(settings, eps=settings.eps * (1 + 1e-6))

    result = run(check_of("d.trajectory_gpt2", steps["gpt2"][5:6]), TrajectoryStack("wrong", change=off))["precision", "wrong"]
    assert result.status is Status.FAIL
    assert result.reason.startswith("adapter."), result.reason


@pytest.mark.parametrize(("name", "said"), [("updates", "updates["), ("loss", "loss is NaN["), ("v.layers.0.q_proj.lora_b", "v (stays)[")])
def test_a_step_with_nothing_to_learn_changes_nothing(name: str, said: str, steps: dict[str, list[StepCase]]) -> None:
    def spoil(of: str, value: np.ndarray) -> np.ndarray:
        changed = np.nan_to_num(value, nan=1.0) if name == "loss" else np.asarray(value * 2 + 1e-300, value.dtype)
        return changed if of == name else value

    check = check_of("d.trajectory_gpt2", steps["gpt2"][EMPTY : EMPTY + 1])
    result = run(check, TrajectoryStack("wrong", spoil=spoil))["precision", "wrong"]
    assert result.status is Status.FAIL
    assert result.reason.startswith(said), result.reason


def test_what_decays_is_told_by_name() -> None:
    """All of A, then all of B; a stack that leaves one matrix out, and one that decays into m."""
    cases = [case for case in trajectory_case.cases(dataclasses.replace(LLAMA, asked=(0, 3)), "float64") if "is zero" in case.name]
    assert [{name[-1] for name in case.without_gradient()} for case in cases] == [{"a"}, {"b"}]
    check, name = check_of("d.trajectory", cases), "layers.1.k_proj.lora_b"

    def kept(of: str, value: np.ndarray) -> np.ndarray:
        return cases[1].before.adapter[name] if of == f"adapter.{name}" else value

    assert run(check, TrajectoryStack("right"))["precision", "right"].status is Status.PASS
    result = run(check_of("d.trajectory", cases[1:]), TrajectoryStack("wrong", spoil=kept))["precision", "wrong"]
    assert result.status is Status.FAIL
    assert result.reason.startswith(f"what decays: {name}["), result.reason

    def into_m(of: str, value: np.ndarray) -> np.ndarray:
        return value + 1e-300 if of == f"m.{name}" else value

    result = run(check, TrajectoryStack("wrong", spoil=into_m))["precision", "wrong"]
    assert result.status is Status.FAIL
    assert result.reason.startswith(f"m.{name}["), "a gradient that is zero leaves m exactly zero"
