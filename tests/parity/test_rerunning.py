"""`--rerun-failed`: what was not green is asked again as it was, and nothing else; and when there is nothing to ask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from contract.errors import MissingError, UserError
from contract.worker import discover, files
from parity import cells as matrix
from parity import rerunning, session
from parity.options import ContractOptions, Options, Progress
from parity.report import record
from parity.report.record import ContractRecord, Result, Run, StackRecord, Status, Timing
from tests.parity.numpy_stack import configure


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder and a working folder of the test's own."""
    monkeypatch.setattr(rerunning, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def result(status: Status, *, check: str = "a.matmul", question: str = "precision", stack: str = "two") -> Result:
    return Result(
        id=check, tier="A", title="it", stacks=(stack,), question=question, device=("CPU",), dtype="float32", status=status
    )  # fmt: skip


def run_of(*results: Result, **changed: object) -> Run:
    fields: dict[str, object] = {
        "twostack": "1", "started": "2026-01-02T03:04:05+00:00", "machine": {}, "tiers": ("A",), "profile": "quick", "seed": 77,
        "false_alarm": 1e-6, "mutants": ("a-mutant",), "model": "a-model", "results": results, "exit_code": 1,
        "stacks": (StackRecord(name="two", device="OTHER", lane="research", versions={}),),
        "timing": Timing(wall=1, busy=1, by_stack={}, start=0),
    }  # fmt: skip
    return Run.model_validate({**fields, **changed})


def again(path: Path | None = None, **given: object) -> Options:
    return rerunning.options(path, given=Options(**given), named=())  # type: ignore[arg-type]


def test_what_was_not_green_as_it_was() -> None:
    red = [
        result(Status.FAIL), result(Status.ERROR, question="same_function"), result(Status.NOT_COVERED, check="a.linear"),
        result(Status.FAIL, check="a.gone"),
    ]  # fmt: skip
    green = [result(status, check="a.exp") for status in (Status.PASS, Status.WAIVED, Status.NOT_APPLICABLE, Status.UNCOVERED_ALLOWED)]
    rerunning.keep(run_of(*red, *green))
    options = again(time_budget=5.0, waiver_file=Path("mine.toml"), allow_uncovered=("precision",))
    assert options.rerun is not None
    assert options.rerun.cells == {rerunning.key_of(one) for one in red}
    assert options.rerun.started == "2026-01-02T03:04:05+00:00"
    assert options.checks == ("a.linear", "a.matmul"), "one that is gone can't be asked, and is told of as lost"
    assert (options.profile, options.seed, options.mutants, options.model) == ("quick", 77, ("a-mutant",), "a-model")
    assert (options.stacks, options.devices) == (("two",), {"two": "OTHER"})
    assert (options.time_budget, options.waiver_file, options.allow_uncovered) == (5.0, Path("mine.toml"), ("precision",))
    assert options.contract is None


def test_the_contract_goes_along() -> None:
    own = ContractRecord(file="run.yaml", preset="smoke", settings=("x=1",), model="m", digest="abc", asked={}, paths={}, declined={})
    rerunning.keep(run_of(result(Status.FAIL, check="c.run"), contract=own))
    options = again()
    assert options.contract == ContractOptions(file=Path("run.yaml"), preset="smoke", settings=("x=1",), model="m")
    assert options.rerun is not None
    assert options.rerun.contract == "abc"
    assert options.checks == ("c.run",)


def test_each_folder_has_its_own_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rerunning.keep(run_of(result(Status.FAIL)))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UserError, match="no run of this folder is kept to ask again") as raised:
        again()
    assert not isinstance(raised.value, MissingError)
    record.write(run_of(result(Status.FAIL, check="a.linear")), tmp_path / "run.json")
    options = again(tmp_path / "run.json")
    assert options.checks == ("a.linear",)


def test_nothing_to_ask_again_is_no_pass() -> None:
    """A gate passes by what it asked; that a run was green is in its own record."""
    rerunning.keep(run_of(result(Status.PASS), result(Status.WAIVED)))
    with pytest.raises(MissingError, match=r"no cell of the run of 2026-01-02T03:04:05\+00:00 .* ask all of it: parity run"):
        again()
    rerunning.keep(run_of(result(Status.PASS), problems=("the waiver of a.exp for two is not used; remove it",)))
    with pytest.raises(MissingError, match=r"red for its waivers: the waiver of a\.exp for two is not used"):
        again()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1, "twostack": 3}', None])
def test_a_record_that_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"run\.json.*; give a record") as raised:
        again(path)
    assert "\n" not in str(raised.value)


def test_what_the_run_settles_can_not_be_given() -> None:
    rerunning.keep(run_of(result(Status.FAIL)))
    with pytest.raises(UserError, match="--rerun-failed has --tier, --seed from the run that it asks again; leave that out"):
        rerunning.options(None, given=Options(), named=("--tier", "--seed"))


def test_the_newest_records_are_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerunning, "KEPT", 2)
    for number in range(4):
        folder = tmp_path / f"folder {number}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        rerunning.keep(run_of(result(Status.FAIL)))
        os.utime(rerunning.last(), (number, number))
    assert {path.name for path in (cache / "runs").iterdir()} == {rerunning.last(tmp_path / f"folder {one}").name for one in (2, 3)}


def test_red_cells_alone_are_asked_and_their_waivers_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real workers: a divergence of one stack; what was green is not asked, and a waiver of that is no matter of the rerun."""
    known = {name: info for name, info in discover.discover(configure(tmp_path, one=[], two=[])).items() if name in ("one", "two")}
    monkeypatch.setattr(discover, "discover", lambda: known)
    monkeypatch.setattr(matrix, "read_coverage", dict)
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    first = session.run(Options(checks=("a.matmul", "a.exp"), devices={"two": "NEGATED"}, profile="quick"), Progress())
    red = cells_of(first, Status.FAIL)
    assert len(red) == 3
    rerunning.keep(first)
    waiver = '[[waiver]]\ncheck = "{}"\nstack = "{}"\nreason = "it"\nowner = "ada"\nexpires = 2999-01-01\n'
    (tmp_path / "waivers.toml").write_text(waiver.format("a.exp", "one"))
    second = session.run(again(), Progress())
    assert {key for key, status in statuses(second).items() if status is not Status.NOT_APPLICABLE} == red
    assert cells_of(second, Status.FAIL) == red
    assert (second.seed, second.rerun_of, second.problems, second.exit_code) == (first.seed, first.started, (), 1)
    (tmp_path / "waivers.toml").write_text(waiver.format("a.matmul", "two"))
    third = session.run(again(), Progress())
    assert third.exit_code == 0
    assert cells_of(third, Status.WAIVED) == red


def test_a_cell_whose_stack_was_not_there_stays_uncovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again beside one that was mended since: the run is not green for what it could not ask."""
    known = {name: info for name, info in discover.discover(configure(tmp_path, one=[], two=[])).items() if name in ("one", "two")}
    monkeypatch.setattr(discover, "discover", lambda: known)
    monkeypatch.setattr(matrix, "read_coverage", dict)
    stack = StackRecord(name="two", device="CPU", lane="research", versions={})
    away = result(Status.NOT_COVERED, stack="third")
    rerunning.keep(run_of(result(Status.FAIL), away, mutants=(), model="", stacks=(stack,)))
    run = session.run(again(), Progress())
    assert statuses(run) == {rerunning.key_of(result(Status.FAIL)): Status.PASS, rerunning.key_of(away): Status.NOT_COVERED}
    assert run.exit_code == 4


def test_a_stack_that_came_since_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: info for name, info in discover.discover(configure(tmp_path, one=[], two=[])).items() if name in ("one", "two")}
    monkeypatch.setattr(discover, "discover", lambda: known)
    rerunning.keep(run_of(result(Status.FAIL), result(Status.NOT_COVERED, stack="one")))
    assert again().devices == {"two": "OTHER", "one": "CPU"}


def statuses(run: Run) -> Mapping[object, Status]:
    return {rerunning.key_of(one): one.status for one in run.results}


def cells_of(run: Run, status: Status) -> set[object]:
    return {key for key, found in statuses(run).items() if found is status}
