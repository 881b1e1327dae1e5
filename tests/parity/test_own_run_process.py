"""`parity run --contract` on the real stacks, as a user meets it: a small model folder and JSONL rows of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity import cli, rerunning
from tests.parity import own_run_stack

pytestmark = pytest.mark.nightly

Parity = Callable[..., tuple[object, dict[str, Any]]]
QLORA = {"lane": "production", "adapter__method": "qlora", "quant__base": "nf4", "adapter__dropout": 0.2}


@pytest.fixture
def parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """The command in this process, over a contract in the folder: exit code, and the record."""
    monkeypatch.setattr(rerunning, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[object, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["parity", "run", *arguments, "--json", "run-record.json"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        capsys.readouterr()
        return stopped.value.code, json.loads((tmp_path / "run-record.json").read_text())

    return run


def asked(record: dict[str, Any]) -> dict[tuple[str, ...], str]:
    results = [one for one in record["results"] if one["status"] != "not_applicable"]
    return {(one["id"], one["question"], one["dtype"], *one["stacks"]): one["status"] for one in results}


def test_both_stacks_on_a_qlora_run(parity: Parity, tmp_path: Path) -> None:
    """Its base is NF4 with nested absmax, its rows are packed, its adapter has dropout: every question, graph and steps."""
    own_run_stack.write(tmp_path, **QLORA, exec__packing=True, exec__seq_len=24)
    code, record = parity("--contract", "run.json")
    assert code == 0, [one["reason"] for one in record["results"]]
    both = ("tinygrad_lora", "torch_qlora")
    expected = {("c.run", "same_function", "float64", *both), ("d.run", "same_function", "float64", *both)}
    for stack in both:
        expected |= {("c.run", "precision", "float64", stack), ("c.run", "precision", "float32", stack)}
        expected |= {("c.run", "fast_path", "float32", stack), ("d.run", "precision", "float64", stack)}
        expected |= {("d.run_float32", "precision", "float32", stack)}
    assert asked(record) == dict.fromkeys(expected, "pass")
    assert "chunked_loss" in record["contract"]["paths"]["torch_qlora"]
    assert "nf4_linear" in record["contract"]["paths"]["tinygrad_lora"]
    assert all("double_quant=false" in record["contract"]["asked"][check][0] for check in ("d.run", "d.run_float32"))


def test_a_bug_in_one_stack_and_the_red_cells_again(parity: Parity, tmp_path: Path) -> None:
    own_run_stack.write(tmp_path, lane="research")
    code, record = parity("--contract", "run.json", "--only", "c.run", "--mutant", "torch-mask-off-by-one")
    assert code == 1
    red = {key for key, status in asked(record).items() if status != "pass"}
    assert ("c.run", "same_function", "float64", "tinygrad_lora", "torch_qlora") in red
    assert not any(key[-1] == "tinygrad_lora" and status == "fail" for key, status in asked(record).items())
    faults = {fault["operation"] for one in record["results"] for fault in one["faults"]}
    assert "weights" in faults
    code, again = parity("--rerun-failed")
    assert code == 1
    assert set(asked(again)) == red
    assert again["rerun_of"] == record["started"]


def test_a_run_that_one_stack_takes(parity: Parity, tmp_path: Path) -> None:
    """tinygrad has no optimiser in 8 bits: torch is held against the reference, and its 8-bit steps have none."""
    own_run_stack.write(tmp_path, **{**QLORA, "adapter__dropout": 0.0}, exec__optimizer="adamw_8bit")
    code, record = parity("--contract", "run.json")
    assert code == 4
    assert {key[1:] for key, status in asked(record).items() if status == "not_covered"} == {("same_function", "float64", "torch_qlora")}
    assert "exec.optimizer adamw_8bit" in record["contract"]["declined"]["tinygrad_lora"]
    code, record = parity("--contract", "run.json", "--allow-uncovered", "same_function")
    assert code == 0
    assert "uncovered_allowed" in asked(record).values()


def test_a_run_in_bfloat16(parity: Parity, tmp_path: Path) -> None:
    own_run_stack.write(tmp_path, lane="research", exec__compute_dtype="bfloat16")
    code, record = parity("--contract", "run.json", "--only", "c.run")
    precision = asked(record)["c.run", "precision", "bfloat16", "torch_qlora"]
    assert (code, precision) == (4, "pass"), "tinygrad's own path is the loss of its steps, which c.run alone does not ask"
