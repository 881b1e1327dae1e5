"""What `parity mutants` does not hold: snippets that show a planted bug again, places of several bugs at once, a defect's guard.

That each mutant is killed, and located, is the campaign's to show: a sample of it in each run of continuous integration, all of it nightly.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from contract.worker import discover
from contract.worker.process import StackProcess
from parity.checks.check import Case
from parity.mutants import catalogue
from parity.options import Options, Progress
from parity.report.record import Result, Run, Status
from parity.session import run

SAMPLE = (
    "torch-primitive-softmax-in-float32", "torch-llama3-ignored", "torch-adam-eps-inside-the-root", "torch-clip-per-tensor",
    "tinygrad-variance-over-one-less", "tinygrad-dropout-not-rescaled", "tinygrad-nf4-tie-goes-up", "tinygrad-divided-not-multiplied",
)  # fmt: skip
"""Of the snippets, those that are run by day."""
GUARD_OFF = "torch-dequantize-guard-off"
DEFECT = "bitsandbytes-cpu-dequantize-shape"
LARGE = ("a.adamw_8bit_step",)
"""Checks of inputs of thousands of elements, which are not spelt out."""
OF_LARGE_BLOCKS = ("torch-nf4-fp4-for-one-block-size", "tinygrad-nf4-fp4-for-one-block-size")
"""Nothing under 4,096 elements shows them."""


def gate(name: str) -> Run:
    """By the stack's own comparison with the reference, so that one stack is enough."""
    mutant = catalogue.read(name)
    return run(Options(checks=(mutant.check,), stacks=mutant.stacks, profile="quick", mutants=(name,)), Progress())


def failures(record: Run) -> list[Result]:
    return [result for result in record.results if result.status is Status.FAIL]


def spelt_out() -> Iterable[str]:
    """One mutant a primitive and stack, for a snippet is made of the operation and not of the bug; none of inputs that are too large."""
    seen = {(catalogue.read(name).check, catalogue.read(name).stacks) for name in SAMPLE}
    yield from SAMPLE
    for name, mutant in catalogue.read_all().items():
        kind = (mutant.check, mutant.stacks)
        left_out = name in (GUARD_OFF, *OF_LARGE_BLOCKS) or mutant.check in LARGE
        if mutant.check[0] in "ab" and len(mutant.stacks) == 1 and not left_out and kind not in seen:
            seen.add(kind)
            yield name


@pytest.mark.parametrize("name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.nightly) for name in spelt_out()])
def test_a_snippet_shows_a_planted_bug_again(name: str, tmp_path: Path) -> None:
    mutant, record = catalogue.read(name), gate(name)
    assert record.exit_code == 1
    assert failures(record)
    for failure in failures(record):
        assert set(mutant.stacks) & set(failure.stacks)
        assert failure.id == mutant.check
        assert f"--mutant {name}" in failure.again
        assert "np.array(" in failure.snippet, "the failure was not shrunk to something that can be spelt out"
    shown = subprocess.run(
        [sys.executable, "-c", failures(record)[0].snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert "AssertionError" in shown.stderr


@pytest.mark.parametrize("name", ["torch-rope-angles-float32", "torch-gqa-tiled", "torch-segments-ignored", "tinygrad-rope-angles-float32"])
def test_a_planted_bug_in_a_graph_is_caught_and_located(name: str) -> None:
    mutant, record = catalogue.read(name), gate(name)
    assert record.exit_code == 1
    found = {fault.operation for failure in failures(record) for fault in failure.faults}
    assert found == set(mutant.located)
    if name.endswith("rope-angles-float32"):
        assert {(failure.question, failure.dtype) for failure in failures(record)} == {("precision", "float64")}, "float32 can't see it"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "names",
    [
        ("torch-rope-angles-float32", "torch-alpha-not-divided"),
        ("torch-eps-outside-the-root", "torch-untied-head-is-the-embedding"),
        ("tinygrad-rope-angles-float32", "tinygrad-eps-left-out"),
    ],
)
def test_two_bugs_planted_together_are_both_located(names: tuple[str, str]) -> None:
    one, other = (catalogue.read(name) for name in names)
    assert (one.check, one.stacks) == (other.check, other.stacks)
    record = run(Options(checks=(one.check,), stacks=one.stacks, profile="quick", mutants=names), Progress())
    assert record.exit_code == 1
    found = {fault.operation for failure in failures(record) for fault in failure.faults}
    assert found == {*one.located, *other.located}


def test_without_the_guard_a_defect_of_bitsandbytes_shows_and_shrinks() -> None:
    info = discover.discover()["torch_qlora"]
    with StackProcess(info.name, info.command, "CPU") as process:
        shows_here = process.request("probe").values["defects"][DEFECT]
    record = gate(GUARD_OFF)
    if not shows_here:
        assert record.exit_code == 0, "this CPU's kernel is right, so without the guard nothing may differ"
        return
    assert record.exit_code == 1
    for failure in failures(record):
        assert "8 x 16, block 64" in failure.reason, f"{failure.reason}: not the smallest layout that shows the defect"


def test_the_smallest_layout_that_shows_the_defect_is_drawn() -> None:
    """So that the assertion above is about shrinking: (8, 16) in blocks of 64 stands before every larger such layout."""
    from parity.checks import nf4_inputs

    at_risk = [layout for layout in nf4_inputs.LAYOUTS if layout[1] % layout[2] and layout[1] % 16 == 0]
    assert min(at_risk, key=lambda layout: np.prod(layout[:2])) == (8, 16, 64)
    assert isinstance(nf4_inputs.packed_case("", (8, 16, 64), np.zeros(64, np.uint8), np.ones(2, np.float32)), Case)
