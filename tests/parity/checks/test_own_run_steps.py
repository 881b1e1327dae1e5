"""d.run: what of a user's steps is asked, what was changed so that the reference affords it, and why nothing is where nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from contract.run.source import read_contract
from contract.training.inputs import Run, prepare
from parity.checks import own_run_batch, own_run_steps
from parity.checks.check import Question
from parity.checks.own_run_batch import FEWEST, RUNS, multiply_adds
from tests.parity import own_run_stack


def ready(folder: Path, **fields: object) -> Run:
    return prepare(read_contract(own_run_stack.write(folder, **fields)), cache=folder / "cache")


def afford(monkeypatch: pytest.MonkeyPatch, run: Run, tokens: int) -> None:
    monkeypatch.setattr(own_run_batch, "AFFORDABLE", tokens * RUNS * multiply_adds(run.plan))


def test_what_is_affordable_is_asked_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ready(tmp_path)
    afford(monkeypatch, run, 2 * 2 * 8)
    assert own_run_steps.of(run) == own_run_steps.Steps(contract=run.contract)
    cases = list(own_run_steps.cases(run))
    assert [case.step.number for case in cases] == [0, 1]
    assert {case.rows for case in cases} == {32}


@pytest.mark.parametrize(
    ("tokens", "fields", "changed"),
    [
        (31, {}, {"grad_accum": 2, "batch_size": 1, "seq_len": 8}),
        (31, {"exec__grad_accum": 4, "exec__warmup_steps": 0}, {"grad_accum": 2, "batch_size": 1, "seq_len": 8}),
        (20, {"exec__seq_len": 12}, {"grad_accum": 2, "batch_size": 1, "seq_len": 10}),
        (1, {"exec__seq_len": 12}, {"grad_accum": 2, "batch_size": 1, "seq_len": FEWEST}),
        (40, {"exec__batch_size": 7, "exec__warmup_steps": 0}, {"grad_accum": 2, "batch_size": 2, "seq_len": 8}),
    ],
)
def test_a_step_is_cut_to_what_is_affordable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, fields: Mapping[str, object], changed: Mapping[str, int]
) -> None:
    run = ready(tmp_path, **fields)
    afford(monkeypatch, run, tokens)
    steps = own_run_steps.of(run)
    exec_ = steps.contract.exec
    assert {name: getattr(exec_, name) for name in changed} == changed
    told = tuple(f"exec.{name}={value}" for name, value in changed.items() if getattr(run.contract.exec, name) != value)
    assert steps.changed == told
    cut = prepare(steps.contract, cache=tmp_path / "cache")
    for case in own_run_steps.cases(cut):
        assert case.rows <= max(tokens, own_run_batch.ROWS * FEWEST)
    check = own_run_steps.checks(run)[0]
    assert check.title == f"the contract's first 2 optimiser steps, with {', '.join(told)}"


def test_nested_absmax_is_plain_in_steps(tmp_path: Path) -> None:
    """About which offset it is nested is each stack's own sum, and a session is given none."""
    run = ready(tmp_path, quant__base="nf4")
    steps = own_run_steps.of(run)
    assert steps.changed == ("quant.double_quant=false",)
    assert not steps.contract.quant.double_quant
    assert own_run_steps.of(ready(tmp_path / "model", quant__base="nf4", quant__double_quant=False)).changed == ()


def test_a_model_that_is_too_large_has_its_cost_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ready(tmp_path)
    cost = FEWEST * RUNS * multiply_adds(run.plan)
    monkeypatch.setattr(own_run_batch, "AFFORDABLE", cost / own_run_steps.FAR)
    assert own_run_steps.of(run).why_not == ""
    monkeypatch.setattr(own_run_batch, "AFFORDABLE", cost / 200)
    for check in own_run_steps.checks(run):
        assert check.plans == ()
        assert set(check.not_applicable) == set(Question)
        told = check.not_applicable[Question.PRECISION]
        assert told == f"even 8 tokens a step would take the float64 reference {cost:.1e} multiply-adds, about 3 hours; c.run asks fewer"


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_in_8_bits_has_no_reference(tmp_path: Path, optimizer: str) -> None:
    assert own_run_steps.of(ready(tmp_path, exec__optimizer=optimizer)).why_not.startswith(f"exec.optimizer {optimizer} holds m and v in 8")


def test_the_run_is_asked_in_its_own_dtype(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        in_float64, narrow = own_run_steps.checks(ready(tmp_path, exec__compute_dtype=dtype))
        assert [(plan.question, plan.dtype) for plan in in_float64.plans] == [("same_function", "float64"), ("precision", "float64")]
        assert [(plan.question, plan.dtype) for plan in narrow.plans] == [("precision", dtype)]
        assert (in_float64.id, narrow.id) == ("d.run", f"d.run_{dtype}")
        assert {in_float64.id, narrow.id} <= set(own_run_steps.IDS)
