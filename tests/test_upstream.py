"""docs/upstream: each defect's script runs, and finds what its line of the README says.

How often a race was seen is in no line: torch_vml_first_call.py shows the race's cause too, which is there in every run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional

from stacks.tinygrad_lora import compiler

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "upstream"
QUICK = {"tinygrad_nan_folding.py", "tinygrad_parentheses.py", "mlx_fast_float64.py"}
NEEDS_A_GPU = "needs a GPU"

HERE = {
    "CPU": True,
    "CPU, AVX512": torch.backends.cpu.get_cpu_capability() == "AVX512",
    "CPU, AVX512-BF16": functional.has_avx512bf16(),
    "CPU with FMA": torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"),
}
"""Where a defect shows -> whether this machine is such; those on CUDA are tried where there is a GPU."""


def lines() -> dict[str, tuple[str, str]]:
    """Script -> (shows on, measured), as the README has them."""
    rows = (
        [cell.strip() for cell in line.split("|")]
        for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    )
    return {row[1].split("`")[1]: (row[2], row[4]) for row in rows}


LINES = lines()


def run(script: str) -> tuple[int, str]:
    """Exit code and output of a script, in a process of its own, without this repository on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DEV")}
    done = subprocess.run(
        [sys.executable, str(FOLDER / script)], capture_output=True, text=True, check=False, env=environment, cwd=FOLDER
    )  # fmt: skip
    assert done.returncode in (0, 1, 2), done.stderr
    return done.returncode, done.stdout


def test_each_script_has_its_line_and_each_line_its_script() -> None:
    assert set(LINES) == {path.name for path in FOLDER.glob("*.py")}


def test_no_script_imports_this_project() -> None:
    for path in FOLDER.glob("*.py"):
        imported = [line.split()[1].split(".")[0] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not {"contract", "parity", "stacks", "tests"} & set(imported), path.name


def each(quick: bool) -> list[str]:
    return sorted(script for script in LINES if (script in QUICK) == quick)


@pytest.mark.parametrize("script", each(quick=True))
def test_a_quick_script_finds_what_its_line_says(script: str) -> None:
    finds_what_its_line_says(script)


@pytest.mark.nightly
@pytest.mark.parametrize("script", each(quick=False))
def test_a_script_finds_what_its_line_says(script: str) -> None:
    finds_what_its_line_says(script)


def finds_what_its_line_says(script: str) -> None:
    """Where the defect shows, its numbers; elsewhere that it does not; without a GPU, that it can't be tried."""
    compiler.prepare()
    place, measured = LINES[script]
    code, said = run(script)
    assert any(part[:1].isdigit() for part in said.split("\n")[0].split()), "the first line names a version"
    if place == "CUDA":
        assert (code, NEEDS_A_GPU in said) == ((1, False) if torch.cuda.is_available() else (2, True))
    else:
        assert code == int(HERE[place]), said
        assert code == 0 or f"measured: {measured}" in said or f" {measured}" in said, said
