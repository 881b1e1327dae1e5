"""From options to a record, on stacks in NumPy: selection, starting, waivers, lost cells."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from contract.errors import EnvironmentUnfit, MissingError, UserError
from contract.worker import discover
from contract.worker.answers import HarnessError
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import selection, session, workers
from parity.checks import products, real_weights, registry
from parity.checks.check import Check
from parity.options import Options, Progress
from parity.report.record import Result, Run, Status
from tests.parity.numpy_stack import CAPABILITIES, configure

TODAY = datetime.datetime.now(datetime.UTC).date()
Go = Callable[..., Run]


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, StackInfo]:
    """Two NumPy stacks, and no others; one matrix that they are held to."""
    stacks = {name: info for name, info in discover.discover(configure(tmp_path, one=[], two=[])).items() if name in ("one", "two")}
    monkeypatch.setattr(discover, "discover", lambda: stacks)
    monkeypatch.setattr(discover, "installed", lambda: stacks)
    monkeypatch.setattr(matrix, "COVERAGE_FILE", tmp_path / "coverage.json")
    matrix.write_coverage(session.coverage_of_all())
    return stacks


@pytest.fixture
def go(known: dict[str, StackInfo], tmp_path: Path) -> Go:
    def run(*checks: str, waivers: str = "", devices: Mapping[str, str] | None = None, **more: object) -> Run:
        path = tmp_path / "waivers.toml"
        path.write_text(waivers)
        options = Options(checks=checks, devices=devices, profile="quick", waiver_file=path)
        return session.run(dataclasses.replace(options, **more), Progress())  # type: ignore[arg-type]

    return run


def statuses(run: Run) -> set[Status]:
    return {result.status for result in run.results} - {Status.NOT_APPLICABLE}


def test_a_green_run(go: Go) -> None:
    run = go("a.matmul", "a.exp")
    assert run.exit_code == 0
    assert statuses(run) == {Status.PASS}
    assert [stack.name for stack in run.stacks] == ["one", "two"]
    assert run.stacks[0].versions["numpy"]
    assert run.tiers == ("A",)
    assert run.false_alarm == 1e-6
    assert run.timing.busy > 0
    assert run.timing.wall >= run.timing.busy
    assert set(run.timing.by_stack) == {"one", "two"}
    explained = [result for result in run.results if result.status is Status.NOT_APPLICABLE]
    assert explained
    assert all(result.reason for result in explained)


def test_two_sets_of_workers_find_what_one_finds(go: Go) -> None:
    """Results in the same order, too; the time of both is told."""
    checks = ("a.matmul", "a.linear", "a.exp")
    one, two = (go(*checks, jobs=jobs, devices={"two": "NEGATED"}) for jobs in (1, 2))
    assert two.exit_code == 1
    assert [result.model_dump(exclude={"seconds"}) for result in two.results] == [
        result.model_dump(exclude={"seconds"}) for result in one.results
    ]
    assert set(two.timing.checks) == set(checks)
    assert set(two.timing.by_stack) == {"one", "two"}


def test_a_worker_that_dies_in_one_set_spoils_its_checks_alone(go: Go) -> None:
    run = go("a.matmul", "a.linear", "a.exp", jobs=3, devices={"two": "DIES"})
    assert run.exit_code == 3
    assert {result.status for result in run.results if result.id != "a.matmul"} - {Status.NOT_APPLICABLE} == {Status.PASS}


def test_the_order_of_stacks_means_nothing(go: Go) -> None:
    assert go("a.matmul", stacks=("two", "one")).exit_code == 0


def test_progress_is_told(known: dict[str, StackInfo], go: Go, tmp_path: Path) -> None:
    told: list[object] = []
    options = Options(checks=("a.matmul",), profile="quick", waiver_file=tmp_path / "none.toml")
    session.run(options, Progress(doing=told.append, total=told.append, step=lambda: told.append("step")))
    examples = 12 + len(products.SHAPES)
    assert told[:3] == ["starting the stacks", examples, "a.matmul: y = a b, and its gradients"]
    assert told.count("step") == examples


def test_a_divergence_is_exit_1(go: Go) -> None:
    run = go("a.matmul", devices={"two": "NEGATED"})
    assert run.exit_code == 1
    failed = [result for result in run.results if result.status is Status.FAIL]
    assert {result.stacks for result in failed} == {("one", "two"), ("two",)}
    assert all('"NEGATED"' in result.snippet for result in failed)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stack", ["one", "two"])
def test_a_nan_is_exit_1(go: Go, stack: str) -> None:
    assert go("a.matmul", devices={stack: "NAN"}).exit_code == 1


@pytest.mark.parametrize("device", ["MISSING", "EXTRA", "SHAPE", "DTYPE", "RAISES", "DIES"])
def test_a_broken_worker_is_exit_3_and_other_checks_run(go: Go, device: str) -> None:
    run = go("a.matmul", "a.linear", devices={"two": device})
    assert run.exit_code == 3
    assert {result.status for result in run.results if result.id == "a.linear"} - {Status.NOT_APPLICABLE} == {Status.PASS}


def test_a_hanging_worker_is_exit_3(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "REQUEST_SECONDS", 1.0)
    run = go("a.matmul", devices={"two": "HANGS"})
    assert run.exit_code == 3
    assert any("took over 1 s" in result.reason for result in run.results)


def test_a_divergence_comes_before_a_broken_worker(go: Go) -> None:
    assert go("a.matmul", devices={"one": "NEGATED", "two": "DIES"}).exit_code == 1


def only(monkeypatch: pytest.MonkeyPatch, checks: Sequence[Check]) -> None:
    """A project that has these checks and no others."""
    monkeypatch.setattr(registry, "CHECKS", tuple(checks))
    monkeypatch.setattr(registry, "checks", lambda model="": tuple(checks))


def test_a_broken_worker_comes_before_what_is_not_covered(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, tuple(check for check in registry.CHECKS if check.id in ("a.matmul", "a.linear")))
    run = go(tiers=("A",), devices={"two": "DIES"})
    assert run.exit_code == 3
    only(monkeypatch, tuple(check for check in registry.CHECKS if check.id == "a.linear"))
    assert go(tiers=("A",)).exit_code == 4


def test_a_spent_time_budget_is_exit_4(go: Go) -> None:
    run = go("a.matmul", time_budget=0.0)
    assert run.exit_code == 4
    assert statuses(run) == {Status.NOT_COVERED}


def test_a_missing_model_is_exit_4_with_the_command(go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    real_weights.weight.cache_clear()
    run = go("b.unnest", "a.exp")
    assert run.exit_code == 4
    for result in run.results:
        if result.id == "b.unnest" and result.status is not Status.NOT_APPLICABLE:
            assert result.status is Status.NOT_COVERED
            assert "finetune fetch" in result.reason
            assert result.examples >= 12
    assert {result.status for result in run.results if result.id == "a.exp"} - {Status.NOT_APPLICABLE} == {Status.PASS}


def test_a_removed_check_is_exit_4_and_names_its_cells(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(check for check in registry.CHECKS if check.id in ("a.matmul", "a.linear"))
    recorded = {key: state for key, state in matrix.read_coverage().items() if key.split(" | ")[0] in ("a.matmul", "a.linear")}
    matrix.write_coverage(recorded)
    only(monkeypatch, kept)
    assert go(tiers=("A",)).exit_code == 0
    only(monkeypatch, kept[:1])
    run = go(tiers=("A",))
    assert run.exit_code == 4
    lost = [result for result in run.results if result.status is Status.NOT_COVERED]
    assert {(result.id, result.question, result.stacks) for result in lost} == {
        ("a.linear", "same_function", ("one", "two")),
        ("a.linear", "precision", ("one",)),
        ("a.linear", "precision", ("two",)),
    }
    assert all("parity coverage --write" in result.reason for result in lost)


def test_a_stack_that_is_gone_is_not_covered(go: Go, known: dict[str, StackInfo]) -> None:
    """Two stacks of which one is not registered any more would else be one that passes; who names stacks means those."""
    del known["two"]
    run = go("a.matmul")
    assert run.exit_code == 4
    lost = [result for result in run.results if result.status is Status.NOT_COVERED]
    assert {(result.question, result.stacks) for result in lost} == {("same_function", ("one", "two")), ("precision", ("two",))}
    assert all("there is no stack two here; install twostack again" in result.reason for result in lost)
    assert go("a.matmul", stacks=("one",)).exit_code == 0


def test_tiers_that_were_not_asked_for_lose_nothing(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix.write_coverage({key: state for key, state in matrix.read_coverage().items() if key.startswith(("a.matmul |", "b."))})
    only(monkeypatch, tuple(check for check in registry.CHECKS if check.id == "a.matmul"))
    assert go(tiers=("A",)).exit_code == 0
    assert go().exit_code == 4


def test_a_check_outside_of_the_asked_tiers_is_a_usage_error(go: Go) -> None:
    with pytest.raises(UserError, match=r"check b\.nest is of tier B; --tier names A"):
        go("b.nest", tiers=("A",))


def waiver(check: str, stack: str, days: int) -> str:
    expires = TODAY + datetime.timedelta(days=days)
    return f'[[waiver]]\ncheck = "{check}"\nstack = "{stack}"\nreason = "issue 17"\nowner = "ada"\nexpires = {expires.isoformat()}\n'


def test_a_used_waiver_is_exit_0(go: Go) -> None:
    run = go("a.matmul", devices={"two": "NEGATED"}, waivers=waiver("a.matmul", "two", 30))
    assert run.exit_code == 0
    waived = [result for result in run.results if result.status is Status.WAIVED]
    assert {result.stacks for result in waived} == {("one", "two"), ("two",)}
    assert all(result.reason.startswith("issue 17 (ada, until") for result in waived)
    assert all("y[" in result.reason for result in waived), "what failed stays readable"


def test_a_waiver_holds_through_its_last_day(go: Go) -> None:
    assert go("a.matmul", devices={"two": "NEGATED"}, waivers=waiver("a.matmul", "two", 1)).exit_code == 0


@pytest.mark.parametrize("failing", [True, False])
def test_an_expired_waiver_is_exit_1(go: Go, failing: bool) -> None:
    run = go("a.matmul", devices={"two": "NEGATED" if failing else "CPU"}, waivers=waiver("a.matmul", "two", -2))
    assert run.exit_code == 1
    assert Status.WAIVED not in statuses(run)
    assert any("expired" in problem for problem in run.problems)


def test_an_unused_waiver_is_exit_1(go: Go) -> None:
    run = go("a.matmul", waivers=waiver("a.matmul", "two", 30))
    assert run.exit_code == 1
    assert run.problems == ("the waiver of a.matmul for two is not used; remove it",)


def test_a_waiver_of_what_was_not_asked_is_not_judged(go: Go) -> None:
    assert go("a.matmul", waivers=waiver("a.linear", "two", 30)).exit_code == 0


@pytest.mark.parametrize(("check", "stack"), [("a.matmull", "two"), ("a.matmul", "twoo")])
def test_a_waiver_of_nothing_that_exists_is_exit_1(go: Go, check: str, stack: str) -> None:
    """Misspelt, it could never be used, nor be found unused."""
    assert go("a.matmul", waivers=waiver(check, stack, 30)).exit_code == 1


def test_a_waiver_is_for_divergences_only(go: Go) -> None:
    run = go("a.matmul", devices={"two": "DIES"}, waivers=waiver("a.matmul", "two", 30))
    assert run.exit_code == 1, "it is not used: a dead worker can't be waived"
    assert Status.ERROR in statuses(run)


def test_unknown_names_are_usage_errors(known: dict[str, StackInfo]) -> None:
    for select, message in (
        (lambda: selection.select_checks(("Z",), ()), "no tier 'Z'; allowed: A, B"),
        (lambda: selection.select_checks((), ("a.matmull",)), "no check 'a.matmull'; did you mean a.matmul, "),
        (lambda: selection.select_stacks(known, ("three",), {}), "no stack 'three'; allowed: one, two"),
        (lambda: selection.select_stacks(known, (), {"three": "CPU"}), "no stack 'three'"),
        (lambda: selection.select_stacks(known, (), {"one": "ABACUS"}), "stack one has no device 'ABACUS'; allowed: CPU, "),
        (lambda: selection.select_stacks(known, ("one",), {"two": "CPU"}), "--device names two, which --stacks leaves out"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            select()
        assert not isinstance(raised.value, MissingError)


def test_a_known_stack_that_is_not_installed_is_missing(known: dict[str, StackInfo]) -> None:
    absent = dataclasses.replace(known["one"], capabilities=CAPABILITIES.model_copy(update={"packages": ("frobnicate",)}))
    with pytest.raises(MissingError, match=r"stack one needs frobnicate, not installed here; run: pip install 'twostack\[dev\]'"):
        selection.select_stacks({**known, "one": absent}, (), {})
    assert set(selection.select_stacks({**known, "one": absent}, ("two",), {})) == {"two"}


@pytest.mark.parametrize(("device", "error"), [("ABSENT", MissingError), ("UNFIT", EnvironmentUnfit)])
def test_a_device_that_is_not_here_and_an_unfit_machine(go: Go, device: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="two"):
        go("a.matmul", devices={"two": device})


def test_a_worker_that_does_not_come_up_is_a_harness_error(known: dict[str, StackInfo], go: Go) -> None:
    known["two"] = dataclasses.replace(known["two"], command=(sys.executable, "-c", "raise SystemExit('no')"))
    with pytest.raises(HarnessError, match="two: the worker ended with exit code 1"):
        go("a.matmul")


def test_no_worker_outlives_a_run(go: Go) -> None:
    before = children()
    go("a.matmul")
    assert children() == before


def children() -> set[str]:
    return {number for task in Path("/proc/self/task").iterdir() for number in (task / "children").read_text().split()}


def test_a_device_that_is_not_the_default_is_asked_for_its_dtypes(known: dict[str, StackInfo], go: Go) -> None:
    run = go("a.matmul", devices={"one": "NEGATED"}, stacks=("one",))
    assert {result.device for result in run.results} == {("NEGATED",)}


def test_the_seed_is_fixed_unless_given(go: Go) -> None:
    first, second, other = go("a.matmul"), go("a.matmul"), go("a.matmul", seed=5)
    assert first.seed == second.seed != other.seed == 5

    def cases(run: Run) -> list[str]:
        return [one.case for result in run.results for one in result.tensors]

    assert cases(first) == cases(second) != cases(other)


def test_a_mutant_of_a_stack_that_does_not_run_is_refused(go: Go) -> None:
    """It would not be planted, and the gate would be green with its name on the record."""
    with pytest.raises(UserError, match="torch"):
        go("a.matmul", mutants=("torch-bfloat16-operand",))


def test_results_name_their_questions(go: Go) -> None:
    results: list[Result] = list(go("b.offset").results)
    assert {result.question for result in results} == {"same_function", "precision", "fast_path"}
