"""The engine on stacks in NumPy: a divergence is found, shrunk and shown; a broken worker is an error on its checks alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import pytest

from contract.errors import MissingError
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.busy import busy_seconds
from parity.cells import Cell, Device
from parity.checks import registry
from parity.checks.check import Case, Check, Plan
from parity.engine import Engine
from parity.judge import controls
from parity.judge.verdict import Comparison
from parity.profiles import Profile
from parity.report.record import Result, Status, exit_code
from tests.parity.numpy_stack import CAPABILITIES, SPOILT, InProcess

Stacks = Mapping[str, InProcess | StackProcess]


def check_of(check_id: str) -> Check:
    return next(check for check in registry.CHECKS if check.id == check_id)


def cells_of(check: Check, names: Sequence[str]) -> list[Cell]:
    info = {name: StackInfo(name=name, command=("nothing",), capabilities=CAPABILITIES) for name in names}
    devices = [Device(info=info[name], name="CPU", dtypes=frozenset({"float32", "float64"})) for name in names]
    return [cell for cell in matrix.matrix([check], devices) if cell.plan is not None]


def run(stacks: Stacks, *checks: Check, examples: int = 12, deadline: float | None = None) -> list[Result]:
    engine = Engine(
        cast("Mapping[str, StackProcess]", stacks),
        dict.fromkeys(stacks, CAPABILITIES),
        profile=Profile(examples=examples),
        seed=1,
        rerun="--seed 1",
        statistical=100,
        deadline=deadline,
    )
    return [result for check in checks for result in engine.run(check, cells_of(check, list(stacks)))]


def two(spoil: str) -> dict[str, InProcess]:
    return {"good": InProcess("good"), "bad": InProcess("bad", SPOILT[spoil])}


def by_stacks(results: Sequence[Result]) -> dict[tuple[str, ...], Result]:
    return {result.stacks: result for result in results}


@pytest.mark.parametrize("check", [check for check in registry.CHECKS if check.operations], ids=lambda check: check.id)
def test_right_stacks_pass(check: Check) -> None:
    if check.tier == "B":
        check = dataclasses.replace(check, fixed_cases=None)  # real weights are the real stacks' business
    results = run(two("CPU"), check)
    assert len(results) == len(cells_of(check, ["good", "bad"]))
    for result in results:
        assert result.status is Status.PASS, result.reason
        assert result.examples >= Profile(examples=12).drawn(check)
        assert result.controls.applied > 0
        assert result.controls.caught == result.controls.applied
        assert result.tensors
        assert result.bound_source
        assert result.snippet == ""
    assert exit_code(tuple(results), ()) == 0


@pytest.mark.parametrize("spoil", ["BF16", "NEGATED", "NAN", "INF"])
def test_a_divergence_is_found_where_it_is(spoil: str) -> None:
    results = by_stacks(run(two(spoil), check_of("a.matmul"), check_of("a.linear"))[:3])
    assert results["good",].status is Status.PASS
    for stacks in (("bad",), ("good", "bad")):
        assert results[stacks].status is Status.FAIL
        assert results[stacks].reason.startswith("y[")
        assert "allowed" in results[stacks].reason
        assert results[stacks].snippet
    assert exit_code(tuple(results.values()), ()) == 1


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
@pytest.mark.timeout(60)
def test_a_nan_fails_from_either_side(order: tuple[str, str]) -> None:
    stacks = two("NAN")
    results = by_stacks(run({name: stacks[name] for name in order}, check_of("a.matmul")))
    assert results[order].status is Status.FAIL
    assert results["bad",].status is Status.FAIL


def test_a_right_check_beside_a_wrong_one_passes() -> None:
    results = run(two("NEGATED"), check_of("a.matmul"), check_of("a.linear"))
    assert {result.status for result in results if result.id == "a.matmul"} == {Status.PASS, Status.FAIL}
    assert {result.status for result in results if result.id == "a.linear"} == {Status.PASS}


def test_a_failure_is_shrunk() -> None:
    """Fails wherever the inner length exceeds one: the smallest such case is (2, 3, 2) with small integers."""

    def spoil(answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wrong = answer["y"].copy()
        wrong[-1, -1] += 1 if answer["a_grad"].shape[1] > 1 else 0
        return {**answer, "y": wrong}

    results = run({"bad": InProcess("bad", spoil)}, check_of("a.matmul"))
    (result,) = [result for result in results if result.dtype == "float32"]
    assert result.status is Status.FAIL
    assert "matmul (2, 3, 2)" in result.reason
    assert "[1, 1]" in result.reason
    assert "'a': 'small integers'" in result.reason
    assert len(result.snippet.splitlines()) < 25


def test_an_elementwise_failure_is_shrunk_to_its_point() -> None:
    """One wrong point of a dense grid: what is shown holds that point alone, and spells it."""

    def spoil(answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.where(answer["y"] < 1e-30, answer["y"] * answer["y"].dtype.type(1.01), answer["y"])}

    results = run({"bad": InProcess("bad", spoil, only="elementary")}, check_of("a.exp"))
    assert len(results) == 2
    for result in results:
        assert result.status is Status.FAIL
        assert "on point" in result.reason
        assert f"dtype='{result.dtype}').reshape((1,))" in result.snippet


def test_a_subtle_cast_is_seen_by_the_sharper_checks_too() -> None:
    results = run(two("BF16"), check_of("a.matmul_exact"), check_of("a.matmul_random"))
    wrong = [result for result in results if "bad" in result.stacks]
    assert {result.status for result in wrong} == {Status.FAIL}
    assert {result.status for result in results if result.stacks == ("good",)} == {Status.PASS}


def test_a_spent_time_budget_is_not_covered() -> None:
    results = run(two("CPU"), check_of("a.matmul"), check_of("a.exp"), deadline=time.monotonic() - 1)
    assert {result.status for result in results} == {Status.NOT_COVERED}
    assert {result.examples for result in results} == {0}
    assert all("time budget" in result.reason for result in results)
    assert exit_code(tuple(results), ()) == 4


def test_a_divergence_found_before_the_time_ran_out_is_still_a_divergence() -> None:
    class Slow(InProcess):
        def submit(self, request: str, values: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> object:  # type: ignore[override]
            time.sleep(0.02)
            return super().submit(request, values, tensors)

    results = run({"bad": Slow("bad", SPOILT["NEGATED"])}, check_of("a.matmul"), examples=2000, deadline=time.monotonic() + 1)
    assert {result.status for result in results} == {Status.FAIL}
    assert exit_code(tuple(results), ()) == 1


def test_a_missing_model_is_not_covered_and_what_can_be_asked_is_asked() -> None:
    def fixed() -> Iterator[Case]:
        raise MissingError("smollm2-135m is not here; fetch it: finetune fetch smollm2-135m")
        yield

    results = run(two("CPU"), dataclasses.replace(check_of("b.quantize"), fixed_cases=fixed))
    for result in results:
        assert result.status is Status.NOT_COVERED
        assert "finetune fetch smollm2-135m" in result.reason
        assert result.examples == 12
    assert exit_code(tuple(results), ()) == 4


def blind_check(**changes: object) -> Check:
    """a.matmul, judged by a comparison that accepts its own negative controls."""
    check = check_of("a.matmul")

    def judge(case: Case, answered: object, false_alarm: float) -> list[Comparison]:
        comparison = Comparison(
            tensor="y", passed=True, observed=0.0, bound=1.0, unit="difference", bound_source="nothing", where=None,
            controls=controls.Outcome(applied=4, caught=2, missed=("rolled", "negated")),
        )  # fmt: skip
        return [dataclasses.replace(comparison, **changes)]  # type: ignore[arg-type]

    return dataclasses.replace(check, plans=tuple(dataclasses.replace(plan, judge=judge) for plan in check.plans))


def test_a_missed_control_is_an_error() -> None:
    results = run(two("CPU"), blind_check())
    for result in results:
        assert result.status is Status.ERROR
        assert result.reason == "y: the comparison accepted a negative control (rolled, negated)"
        assert result.controls.caught < result.controls.applied
    assert exit_code(tuple(results), ()) == 3


def test_a_divergence_is_told_before_a_missed_control() -> None:
    assert {result.status for result in run(two("CPU"), blind_check(passed=False))} == {Status.FAIL}


def test_a_comparison_that_can_not_be_made_is_an_error() -> None:
    def judge(case: Case, answered: object, false_alarm: float) -> list[Comparison]:
        raise ValueError("the stack declares no error of exp")

    check = check_of("a.matmul")
    results = run(two("CPU"), dataclasses.replace(check, plans=tuple(dataclasses.replace(plan, judge=judge) for plan in check.plans)))
    assert {result.status for result in results} == {Status.ERROR}
    assert all("declares no error of exp" in result.reason for result in results)


def test_a_check_whose_judge_says_nothing_does_not_pass() -> None:
    """No comparison is no proof."""
    check = check_of("a.matmul")
    silent = dataclasses.replace(check, plans=tuple(dataclasses.replace(plan, judge=lambda *_: []) for plan in check.plans))
    assert Status.PASS not in {result.status for result in run(two("CPU"), silent)}


def test_the_false_alarm_probability_is_divided_over_the_run() -> None:
    seen: list[float] = []

    def judge(case: Case, answered: object, false_alarm: float) -> list[Comparison]:
        seen.append(false_alarm)
        return []

    check = check_of("a.matmul_random")
    run(two("CPU"), dataclasses.replace(check, plans=tuple(dataclasses.replace(plan, judge=judge) for plan in check.plans)))
    assert set(seen) == {1e-6 / 100}


def test_two_questions_share_one_answer() -> None:
    check = check_of("b.quantize")
    stack = InProcess("one")
    run({"one": stack, "two": InProcess("two")}, dataclasses.replace(check, fixed_cases=None))
    assert len(stack.asked) == 12


def test_the_same_seed_draws_the_same() -> None:
    first, second = (run(two("CPU"), check_of("a.matmul")) for _ in range(2))
    assert [result.tensors for result in first] == [result.tensors for result in second]


def test_the_tightest_comparison_is_reported() -> None:
    for result in run(two("CPU"), check_of("a.linear")):
        headrooms = [one.headroom for one in result.tensors if one.headroom is not None]
        assert result.headroom == min(headrooms, default=None)
        assert {one.tensor for one in result.tensors} == {"y", "x_grad", "weight_grad", "bias_grad"}


def test_busy_time_is_the_union_of_intervals() -> None:
    second = 10**9
    assert busy_seconds({"a": [(0, second), (3 * second, 4 * second)], "b": [(second // 2, 2 * second)]}) == 3.0
    assert busy_seconds({"a": []}) == 0.0
    assert busy_seconds({"a": [(0, 4 * second)], "b": [(second, 2 * second)]}) == 4.0


def test_a_plan_is_asked_of_the_stacks_of_its_cell_only() -> None:
    good, other = InProcess("good"), InProcess("other")
    check = check_of("a.matmul_random")
    cells = [cell for cell in cells_of(check, ["good", "other"]) if cell.stacks == ("good",)]
    engine = Engine(
        cast("Mapping[str, StackProcess]", {"good": good, "other": other}), dict.fromkeys(("good", "other"), CAPABILITIES),
        profile=Profile(examples=3), seed=1, rerun="--seed 1", statistical=1,
    )  # fmt: skip
    engine.run(check, cells)
    assert good.asked
    assert not other.asked


def test_plans_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast(Plan, registry.CHECKS[0].plans[0]).dtype = "float16"  # type: ignore[misc]
