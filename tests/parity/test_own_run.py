"""`parity run --contract` on stacks that are the reference but for what a test changed: who is asked, what is seen, what is not covered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from contract.errors import UserError
from contract.run.digest import digest
from contract.run.source import read_contract
from contract.worker import discover, files
from contract.worker.answers import HarnessError
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import session, workers
from parity import unasked as unasked_cells
from parity.cells import Cell
from parity.checks.check import Check
from parity.options import ContractOptions, Options, Progress
from parity.report.record import Result, Run, Status
from tests.parity import own_run_stack
from tests.parity.graph_stack import with_lora
from tests.parity.own_run_stack import PATHS, OwnRunStack
from tests.parity.trajectory_stack import TrajectoryStack

Go = Callable[..., Run]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """A run of a small contract on `alpha` and `beta`; what is found wrong is not bisected."""

    def run(
        *stacks: OwnRunStack, known: Mapping[str, StackInfo] | None = None, fields: Mapping[str, object] | None = None, **options: object
    ) -> Run:
        contract = own_run_stack.write(tmp_path, **(fields or {}))
        monkeypatch.setattr(discover, "discover", lambda: dict(known or own_run_stack.two()))
        fakes = stacks or (OwnRunStack("alpha"), OwnRunStack("beta"))
        monkeypatch.setattr(workers, "sets", lambda count, chosen, mutants, own_run: own_run_stack.sets(fakes, chosen))
        settings = {"checks": ("c.run",), **options}
        given = Options(contract=ContractOptions(file=contract), waiver_file=tmp_path / "none.toml", **settings)  # type: ignore[arg-type]
        return session.run(given, Progress())

    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(matrix, "read_coverage", dict)
    monkeypatch.setattr("parity.checks.graph_plans.bisect.faults", lambda *about: [])
    return run


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every cell that a run has is green, and no stack is asked; the checks, in order."""
    seen: list[str] = []

    def pass_all(engine: object, check: Check, cells: Sequence[Cell]) -> list[Result]:
        seen.append(check.id)
        return [unasked_cells.explained(cell).model_copy(update={"status": Status.PASS}) for cell in cells]

    monkeypatch.setattr("parity.session.Engine.run", pass_all)
    return seen


def asked(run: Run) -> dict[tuple[str, ...], Status]:
    """Question, dtype and stacks -> status, of what applies."""
    return {
        (one.question, one.dtype, *one.stacks): one.status for one in run.results if one.status is not Status.NOT_APPLICABLE
    }  # fmt: skip


def of(run: Run, *key: str) -> Result:
    return next(one for one in run.results if (one.question, one.dtype, *one.stacks) == key)


def test_both_stacks_of_a_run_that_both_take(go: Go, tmp_path: Path) -> None:
    run = go()
    assert asked(run) == dict.fromkeys(
        [
            ("same_function", "float64", "alpha", "beta"), ("precision", "float64", "alpha"), ("precision", "float64", "beta"),
            ("precision", "float32", "alpha"), ("precision", "float32", "beta"), ("fast_path", "float32", "alpha"),
            ("fast_path", "float32", "beta"),
        ],
        Status.PASS,
    )  # fmt: skip
    assert run.exit_code == 0
    assert all(one.examples == one.real_weights == 2 for one in run.results if one.status is Status.PASS)
    assert run.contract is not None
    assert run.contract.digest == digest(read_contract(tmp_path / "run.json"))
    assert run.contract.paths == {"alpha": PATHS, "beta": PATHS}
    assert run.contract.asked == {
        "c.run": ("micro-batch 1 of step 1: all of its 2 x 8 tokens", "micro-batch 2 of step 1: all of its 2 x 8 tokens")
    }
    assert f"--contract {tmp_path / 'run.json'}" in run.results[0].again


def test_each_question_sees_what_it_should(go: Go) -> None:
    """`alpha` is wrong on the paths that its run takes, and there alone; `beta` has half its adapter, which B = 0 does not show."""
    alpha = OwnRunStack("alpha")
    plain = alpha._gradients

    def gradients(values: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = plain(values, tensors)
        if alpha._plan.paths:
            assert alpha._plan.paths == PATHS
            answer["grad.layers.0.q_proj.lora_b"] = answer["grad.layers.0.q_proj.lora_b"] * np.float32(1.001)
        return answer

    alpha._gradients = gradients  # type: ignore[method-assign]
    halved = with_lora(alpha=2.5)
    run = go(alpha, OwnRunStack("beta", change=halved))
    assert run.exit_code == 1
    assert {key for key, status in asked(run).items() if status is Status.FAIL} == {
        ("same_function", "float64", "alpha", "beta"), ("precision", "float64", "beta"), ("precision", "float32", "beta"),
        ("fast_path", "float32", "alpha"),
    }  # fmt: skip
    logits = next(tensor for tensor in of(run, "precision", "float64", "beta").tensors if tensor.tensor == "logits")
    assert logits.case.endswith("random B")
    assert logits.observed > logits.bound


def test_a_run_that_one_stack_takes_is_held_against_the_reference(go: Go, unasked: list[str]) -> None:
    known = own_run_stack.two(graphs=own_run_stack.GRAPHS.graphs)
    training = known["beta"].capabilities.training
    assert training is not None
    less = known["beta"].capabilities.model_copy(update={"training": training.model_copy(update={"patterns": False})})
    known["beta"] = dataclasses.replace(known["beta"], capabilities=less)
    fields = {"adapter__rank_pattern": {"q_proj": 3}}
    run = go(known=known, fields=fields)
    assert run.exit_code == 4
    assert [stack.name for stack in run.stacks] == ["alpha"]
    uncovered = {one.question: one.reason for one in run.results if one.status is Status.NOT_COVERED}
    assert list(uncovered) == ["same_function"]
    assert "this run has one; beta does not take it: patterns: got adapter.rank_pattern for q_proj" in uncovered["same_function"]
    allowed = go(known=known, fields=fields, allow_uncovered=("same_function",))
    assert allowed.exit_code == 0
    assert of(allowed, "same_function", "float64", "alpha").status is Status.UNCOVERED_ALLOWED
    assert go(known=known, fields=fields, allow_uncovered=("fast_path",)).exit_code == 4


def test_paths_that_no_open_graph_has_are_not_covered_by_it(go: Go, unasked: list[str]) -> None:
    """Its steps have them: where those are asked, in the run's dtype, nothing is missing."""
    stacks = OwnRunStack("alpha"), OwnRunStack("beta", paths=("one_kernel",))
    run = go(*stacks)
    assert run.exit_code == 4
    uncovered = of(run, "fast_path", "float32", "beta")
    assert uncovered.status is Status.NOT_COVERED
    assert "one_kernel, which its steps have and its open graph has not" in uncovered.reason


def test_a_stack_that_does_not_say_its_paths(go: Go, unasked: list[str]) -> None:
    silent = own_run_stack.two(requests=("train",))
    run = go(known=silent)
    assert run.exit_code == 4
    assert "train_paths, docs/protocol.md" in of(run, "fast_path", "float32", "beta").reason
    with pytest.raises(HarnessError, match="answered train_paths with 'all' for paths; a list of names is wanted"):
        go(OwnRunStack("alpha"), OwnRunStack("beta", paths="all"))


def test_a_device_in_place_of_the_contracts(go: Go, unasked: list[str]) -> None:
    devices = ("CPU", "OTHER")
    run = go(known=own_run_stack.two(devices=devices), stacks=("beta",), allow_uncovered=("same_function",))
    assert [(stack.name, stack.device) for stack in run.stacks] == [("beta", "CPU")]
    assert run.exit_code == 0
    with pytest.raises(UserError, match=r"no stack takes this run \(beta: device: got exec\.device NONE; allowed: stack beta: CPU, OTHER"):
        go(known=own_run_stack.two(devices=devices), stacks=("beta",), devices={"beta": "NONE"})


def test_other_checks_come_with_their_tiers(go: Go, unasked: list[str]) -> None:
    """The run's own checks are asked in any case, but where --only names others."""
    own = ["c.run", "d.run", "d.run_float32"]
    go(checks=())
    assert unasked == own
    unasked.clear()
    go(checks=(), tiers=("B",))
    assert unasked[:3] == own
    assert {name.partition(".")[0] for name in unasked[3:]} == {"b"}
    unasked.clear()
    go(checks=("d.run",))
    assert unasked == ["d.run"]
    with pytest.raises(
        UserError, match=r"check c\.run is of a run of yours; name its contract: parity run --contract run\.yaml --only c\.run"
    ):
        session.run(Options(checks=("c.run",)), Progress())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_first_steps(go: Go, dtype: str) -> None:
    check = "d.run" if dtype == "float64" else "d.run_float32"
    wrong = TrajectoryStack("beta", change=lambda settings: dataclasses.replace(settings, weight_decay=settings.weight_decay * 2))
    run = go(OwnRunStack("alpha"), OwnRunStack("beta", steps=wrong), checks=(check,))
    assert run.contract is not None
    assert run.contract.asked == {check: ("the contract's first 2 optimiser steps",)}
    assert {question for question, *_ in asked(run)} == ({"same_function", "precision"} if dtype == "float64" else {"precision"})
    assert of(run, "precision", dtype, "beta").status is Status.FAIL
    assert of(run, "precision", dtype, "alpha").status is Status.PASS


def test_steps_that_have_no_reference_say_why(go: Go, unasked: list[str]) -> None:
    known = own_run_stack.two()
    training = known["alpha"].capabilities.training
    assert training is not None
    able = known["alpha"].capabilities.model_copy(update={"training": training.model_copy(update={"optimizers": ("adamw", "adamw_8bit")})})
    known["alpha"] = dataclasses.replace(known["alpha"], capabilities=able)
    run = go(known=known, fields={"exec__optimizer": "adamw_8bit"}, checks=("d.run", "c.run"), allow_uncovered=("same_function",))
    assert run.exit_code == 0
    told = {one.reason for one in run.results if one.id == "d.run"}
    assert told == {"exec.optimizer adamw_8bit holds m and v in 8 bits: no float64 reference"}
    assert {one.status for one in run.results if one.id == "d.run"} == {Status.NOT_APPLICABLE}
