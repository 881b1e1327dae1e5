"""The contract's mutants in the gate's own process: planted before it begins, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import UserError
from contract.worker import discover
from parity import workers
from parity.mutants import catalogue, planting

NAME = "contract-order-same-each-epoch"
FROM_FILE = """
[twice]
stack = "contract"
what = "the schedule's table is twice as high"
check = "d.policy_schedule"
module = "contract.run.schedule"
find = "return base * (step / max(1, warmup))"
replace = "return 2 * base * (step / max(1, warmup))"
"""

SHOWS = """
import sys
from parity.mutants import planting
planting.plant(sys.argv[1:])
from contract.run.schedule import learning_rate
from parity.checks import trajectory_case
print(learning_rate(1, 3.0, 2, 5), trajectory_case.prepare.__globals__["learning_rates"](3.0, 2, 5)[1])
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(FROM_FILE)
    return f"{path}#twice"


def test_mutants_of_the_contract_are_known_from_those_of_stacks(file: str) -> None:
    of_a_stack = next(name for name, one in catalogue.read_all().items() if catalogue.CONTRACT not in one.stacks)
    assert planting.missing([NAME, of_a_stack, file]) == [NAME, file]
    assert planting.missing([of_a_stack]) == planting.missing([]) == []
    assert [change.module for change in planting.of_contract([NAME, file])] == ["contract.data.order", "contract.run.schedule"]


def test_a_command_begins_anew_with_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: begun.append(arguments))
    monkeypatch.setattr(sys, "argv", ["parity", "run", "--mutant", NAME])
    planting.begin_anew([])
    assert begun == []
    planting.begin_anew([NAME])
    assert begun == [[sys.executable, "-m", planting.MODULE, f"--plant={NAME}", "run", "--mutant", NAME]]
    monkeypatch.setattr(planting, "PLANTED", [NAME])
    planting.begin_anew([NAME])
    assert len(begun) == 1


def test_stacks_never_have_a_mutant_of_the_contract_that_the_gate_lacks() -> None:
    info = discover.discover()["torch_qlora"]
    with pytest.raises(UserError, match=f"mutant {NAME} changes the contract, and this process has the unchanged one"):
        workers.started({"torch_qlora": (info, "CPU")}, [NAME]).__enter__()


def test_contract_and_parity_are_imported_with_the_change(file: str) -> None:
    shown = subprocess.run([sys.executable, "-c", SHOWS, file], capture_output=True, text=True, check=True)
    assert shown.stdout == "3.0 3.0\n"


@pytest.mark.parametrize("wrong", ["no-such-mutant", "stale"])
def test_what_cant_be_planted_is_told_in_a_line(file: str, wrong: str) -> None:
    path = Path(file.partition("#")[0])
    path.write_text(FROM_FILE.replace("return base", "return nothing of the kind"))
    name = file if wrong == "stale" else wrong
    told = subprocess.run([sys.executable, "-m", planting.MODULE, f"--plant={name}", "run"], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert len(told.stderr.splitlines()) == 1
    assert "must occur once" in told.stderr if wrong == "stale" else "there is no mutant" in told.stderr


def test_the_rest_of_the_arguments_are_the_commands(file: str) -> None:
    command = [sys.executable, "-m", planting.MODULE, f"--plant={file}", "explain", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "explain [OPTIONS]" in shown.stdout
