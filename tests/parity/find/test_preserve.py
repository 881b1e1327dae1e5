"""Whole graphs that fail: their file holds what fails alone where all is too much, and replays on either stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from contract.worker import discover
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import graph_judges, registry
from parity.checks.check import Case, Check, Question
from parity.checks.graph_case import GraphCase
from parity.checks.graph_packed import smaller
from parity.engine import Engine
from parity.find import preserve, replay, stored
from parity.find.preserve import Keeper, Of
from parity.profiles import Profile
from parity.report.record import Result, Status
from tests.parity.graph_stack import CAPABILITIES, GraphStack, small_case, with_layout

INFO = {name: StackInfo(name=name, command=("nothing",), capabilities=CAPABILITIES) for name in ("good", "wrong")}
THETA = with_layout(rope_theta=71.0)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stacks and no others; few perturbed runs behind a limit, which the planted error exceeds a millionfold."""
    monkeypatch.setattr(discover, "discover", lambda: INFO)
    monkeypatch.setattr(graph_judges, "RUNS", 5)


@pytest.fixture(scope="module")
def case() -> GraphCase:
    """A small Llama on seven tokens."""
    return next(one for one in smaller(small_case(which=1), ()) if one.batch.ids.shape[1] < 8)


def check_of(*cases: Case) -> Check:
    """c.llama in float64, on these cases."""
    check = next(check for check in registry.CHECKS if check.id == "c.llama")
    plans = tuple(plan for plan in check.plans if plan.dtype == "float64")
    return dataclasses.replace(check, plans=plans, cases=None, fixed_cases=lambda: iter(cases), fixed_count=len(cases), locate=None)


def run(folder: Path, question: Question, *cases: Case, wrong: GraphStack | None = None) -> Result:
    """The one cell that fails."""
    stacks = {"good": GraphStack("good"), "wrong": wrong or GraphStack("wrong", change=THETA)}
    check = check_of(*cases)
    devices = [Device(info=info, name="CPU", dtypes=frozenset({"float64"})) for info in INFO.values()]
    cells = [
        cell for cell in matrix.matrix([check], devices) if cell.plan is not None and cell.question is question and "wrong" in cell.stacks
    ]
    of = Of(versions={name: {"numpy": "1"} for name in stacks}, rerun="--seed 1", profile="quick", seed=1, mutants=(), model="")
    engine = Engine(
        cast("Mapping[str, StackProcess]", stacks), dict.fromkeys(stacks, CAPABILITIES), profile=Profile(examples=1), seed=1,
        rerun="--seed 1", statistical=100, reproducers=Keeper(folder, of),
    )  # fmt: skip
    (result,) = engine.run(check, cells)
    assert result.status is Status.FAIL
    return result


class Running(replay.Workers):
    """Stacks in this process."""

    def __init__(self, **stacks: GraphStack) -> None:
        super().__init__()
        self._stacks = stacks

    def get(self, info: StackInfo, device: str, mutants: Sequence[str]) -> StackProcess:
        return cast(StackProcess, self._stacks[info.name])


def replayed(path: str, *names: str, mended: bool = False) -> replay.Replayed:
    wrong = GraphStack("wrong") if mended else GraphStack("wrong", change=THETA)
    return replay.replay(Path(path), replay.Options(stacks=names), Running(good=GraphStack("good"), wrong=wrong))


def test_a_graph_replays_on_both_stacks_and_on_either(tmp_path: Path, case: GraphCase) -> None:
    """Two that differ: the reference says which one is wrong."""
    result = run(tmp_path, Question.SAME_FUNCTION, case)
    record = stored.read(Path(result.reproducer)).record
    assert record.kept is None
    assert [stack.name for stack in record.stacks if stack.suspect] == ["wrong"]
    assert record.no_neighbour == "no input that was tried passes"
    both, alone = replayed(result.reproducer), replayed(result.reproducer, "wrong")
    assert (both.exit_code, alone.exit_code) == (1, 1)
    assert both.as_then == {"good": True, "wrong": True}
    assert alone.as_then == {"wrong": True}
    assert len(both.others) == len(alone.others) > 0
    mended = replayed(result.reproducer, "wrong", mended=True)
    assert (mended.exit_code, mended.as_then) == (0, {"wrong": False})


def test_what_is_too_large_is_narrowed_to_what_failed(tmp_path: Path, case: GraphCase, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(run(tmp_path, Question.SAME_FUNCTION, case).reproducer)
    monkeypatch.setattr(stored, "MOST_BYTES", whole.stat().st_size - 1)
    result = run(tmp_path, Question.SAME_FUNCTION, case)
    record = stored.read(Path(result.reproducer)).record
    assert record.case.fields["name"] == case.name
    assert record.kept == (record.place,)
    assert replayed(result.reproducer, "wrong").exit_code == 1
    assert not replayed(result.reproducer, "wrong").others
    assert replayed(result.reproducer).others, "with both stacks all of it is judged"


def test_what_is_larger_still_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: GraphCase) -> None:
    """Sequences and tokens; and what can't be cut to fit has no file, but a reason."""
    larger = small_case(which=1)
    for _ in range(2):  # whole, narrowed
        file = Path(run(tmp_path, Question.PRECISION, larger).reproducer)
        monkeypatch.setattr(stored, "MOST_BYTES", file.stat().st_size - 1)
    result = run(tmp_path, Question.PRECISION, larger)
    assert result.reproducer, result.no_reproducer
    record = stored.read(Path(result.reproducer)).record
    assert record.case.fields["name"].startswith("sequence ")
    monkeypatch.setattr(stored, "MOST_BYTES", 1000)
    result = run(tmp_path, Question.PRECISION, case)
    assert result.reproducer == ""
    assert result.no_reproducer.startswith("it is too large: ")


def test_a_neighbour_passes_with_the_other_stacks_answers(tmp_path: Path, case: GraphCase) -> None:
    """A stack that is wrong on one batch alone."""
    good = dataclasses.replace(case, name="another batch", seed=case.seed + 1, _made={})

    class Sometimes(GraphStack):
        def _gradients(self, values: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            answer = super()._gradients(values, tensors)
            wrong = np.array_equal(tensors["ids"], case.batch.ids)
            return {**answer, "logits": answer["logits"] * 1.001} if wrong else answer

    ids = case.batch.ids.copy()
    ids[0, 0] = (ids[0, 0] + 1) % case.plan.layout.vocab_size
    batch = dataclasses.replace(case.batch, ids=ids)
    good = dataclasses.replace(good, batch=batch, inputs={"float64": batch.tensors()})
    result = run(tmp_path, Question.SAME_FUNCTION, good, case, wrong=Sometimes("wrong"))
    record = stored.read(Path(result.reproducer)).record
    assert record.neighbour is not None
    assert record.neighbour.fields["name"] == "another batch"
    found = replay.replay(Path(result.reproducer), replay.Options(stacks=("wrong",)), Running(wrong=Sometimes("wrong")))
    assert (found.exit_code, found.neighbour) == (1, "")


def test_a_check_that_no_other_run_has_is_not_written(tmp_path: Path, case: GraphCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a user's own contract."""
    monkeypatch.setattr(preserve, "find_plan", lambda *cell: None)
    result = run(tmp_path, Question.PRECISION, case)
    assert "c.llama is of this run's own contract, which a file can't hold; run: parity run --only c.llama" in result.no_reproducer
