"""Every planted bug is caught by the check that should see it, on the real stacks, with a snippet that shows it again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from contract.errors import UserError
from contract.worker import discover, graph
from contract.worker.plan import GraphPlan
from contract.worker.process import StackProcess
from parity.checks import registry
from parity.checks.check import Case
from parity.judge import perturb
from parity.mutants import catalogue
from parity.options import Options, Progress
from parity.reference.graph import Batch
from parity.report.record import Result, Run, Status
from parity.session import run

T = TypeVar("T")
GRAPHS = [name for name, mutant in catalogue.read_all().items() if mutant.located]
SLOW = ("tinygrad-lora-swapped", "tinygrad-eps-left-out", "tinygrad-gqa-tiled")
"""Each compiles its own kernels for half a minute; nightly."""
OF_OTHER_GRAPHS = tuple(name for name in GRAPHS if catalogue.read(name).check != "c.llama" and name != "torch-segments-ignored")
"""Of graphs that a Llama, and one packed, stand for by day; nightly."""
TRAINING = [name for name, mutant in catalogue.read_all().items() if mutant.check.startswith("d.")]
"""Of a step around its graph: some ten seconds each; nightly. Of each kind, tests/parity/checks/test_trajectory.py plants one by day."""
ARTIFACTS = [name for name, mutant in catalogue.read_all().items() if mutant.check.startswith("e.")]
"""Of files; nightly. tests/parity/checks/test_artifacts.py plants one of each kind by day."""
LARGE = ("torch-moments-lookup-guard-off", "torch-moments-one-absmax", "tinygrad-long-product-cut-off", "torch-one-token-sees-nothing")
"""Of thousands of elements, or a whole graph: no input that shows them can be spelt out; nightly."""
PRIMITIVES = [name for name in catalogue.read_all() if name not in (*GRAPHS, *TRAINING, *ARTIFACTS, *LARGE)]
SAMPLE = (
    "torch-primitive-softmax-in-float32", "torch-llama3-ignored", "torch-adam-eps-inside-the-root", "torch-clip-per-tensor",
    "tinygrad-variance-over-one-less", "tinygrad-dropout-not-rescaled", "tinygrad-nf4-tie-goes-up", "tinygrad-divided-not-multiplied",
)  # fmt: skip
"""The others start a worker each for a mistake of the same kinds; nightly."""
GUARD_OFF = "torch-dequantize-guard-off"
DEFECT = "bitsandbytes-cpu-dequantize-shape"


def gate(name: str) -> Run:
    """By the stack's own comparison with the reference, so that one stack is enough."""
    mutant = catalogue.read(name)
    return run(Options(checks=(mutant.check,), stacks=(mutant.stack,), profile="quick", mutants=(name,)), Progress())


@pytest.fixture(scope="module", autouse=True)
def one_reference() -> Iterator[None]:
    """Mutants are asked about the same graphs: the reference's perturbed runs on them, which no mutant changes, are made once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("respond", "respond_section"):
            patch.setattr(perturb, name, remembered(getattr(perturb, name)))
        yield


def remembered(make: Callable[..., T]) -> Callable[..., T]:
    """The same answer for the same plan, numbers and options."""
    made: dict[str, T] = {}

    def answer(plan: GraphPlan, *rest: Any, **options: Any) -> T:
        *section, weight, adapter, given = rest
        tensors = given.tensors() if isinstance(given, Batch) else given
        plain = graph.weights(plan.model_copy(update={"base": None}))
        digest = hashlib.sha256(repr((plan.model_dump_json(), section, sorted(options.items()))).encode())
        for name, array in sorted({**{name: weight(name) for name in plain}, **adapter, **tensors}.items()):
            digest.update(f"{name}{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
        key = digest.hexdigest()
        if key not in made:
            made[key] = make(plan, *rest, **options)
        return made[key]

    return answer


def failures(record: Run) -> list[Result]:
    return [result for result in record.results if result.status is Status.FAIL]


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.nightly) for name in PRIMITIVES if name != GUARD_OFF]
)
def test_a_planted_bug_is_caught(name: str, tmp_path: Path) -> None:
    mutant, record = catalogue.read(name), gate(name)
    assert record.exit_code == 1
    assert failures(record)
    for failure in failures(record):
        assert mutant.stack in failure.stacks
        assert failure.id == mutant.check
        assert "np.array(" in failure.snippet, "the failure was not shrunk to something that can be spelt out"
    shown = subprocess.run(
        [sys.executable, "-c", failures(record)[0].snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert "AssertionError" in shown.stderr


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name in (*SLOW, *OF_OTHER_GRAPHS) else name for name in GRAPHS]
)
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
    assert (one.check, one.stack) == (other.check, other.stack)
    record = run(Options(checks=(one.check,), stacks=(one.stack,), profile="quick", mutants=names), Progress())
    assert record.exit_code == 1
    found = {fault.operation for failure in failures(record) for fault in failure.faults}
    assert found == {*one.located, *other.located}


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*TRAINING, *ARTIFACTS, *LARGE])
def test_a_planted_bug_in_training_files_or_large_inputs_is_caught(name: str) -> None:
    mutant, record = catalogue.read(name), gate(name)
    assert record.exit_code == 1
    for failure in failures(record):
        assert mutant.stack in failure.stacks
        assert failure.id == mutant.check
        assert f"--mutant {name}" in failure.again


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


def test_every_mutant_names_a_check_and_a_stack() -> None:
    checks = {check.id for check in registry.CHECKS}
    stacks = set(discover.discover())
    for mutant in catalogue.read_all().values():
        assert mutant.check in checks
        assert mutant.stack in stacks


def test_an_unknown_mutant_is_refused() -> None:
    with pytest.raises(UserError, match="there is no mutant 'typo'; allowed: "):
        catalogue.read("typo")


def test_the_smallest_layout_that_shows_the_defect_is_drawn() -> None:
    """So that the assertion above is about shrinking: (8, 16) in blocks of 64 stands before every larger such layout."""
    from parity.checks import nf4_inputs

    at_risk = [layout for layout in nf4_inputs.LAYOUTS if layout[1] % layout[2] and layout[1] % 16 == 0]
    assert min(at_risk, key=lambda layout: np.prod(layout[:2])) == (8, 16, 64)
    assert isinstance(nf4_inputs.packed_case("", (8, 16, 64), np.zeros(64, np.uint8), np.ones(2, np.float32)), Case)
