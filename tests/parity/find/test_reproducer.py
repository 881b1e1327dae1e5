"""A snippet is run as a user would run it, and shows the failure again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import find, settings

from contract.worker import discover
from contract.worker.discover import StackInfo
from contract.worker.files import FileReference
from parity import session
from parity.cells import Cell
from parity.checks import registry
from parity.checks.check import Answered, Case, Question, Request
from parity.find import reproducer
from parity.judge import controls
from parity.judge.verdict import Comparison
from parity.report.record import Result, Run, Status
from parity.session import Options, Progress
from tests.parity.numpy_stack import CAPABILITIES, configure

COMPARISON = Comparison(
    tensor="y", passed=False, observed=2.0, bound=0.5, unit="absolute difference", bound_source="a test", where=(1, 0),
    controls=controls.NONE, got=3.0, wanted=1.0,
)  # fmt: skip


def execute(snippet: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "snippet.py").write_text(snippet)
    return subprocess.run([sys.executable, "snippet.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def cell_of(check_id: str, question: Question, stacks: tuple[str, ...] = ("one",)) -> Cell:
    check = next(check for check in registry.CHECKS if check.id == check_id)
    plan = next(plan for plan in check.plans if plan.question is question)
    return Cell(check=check, question=question, dtype=plan.dtype, stacks=stacks, devices=tuple("CPU" for _ in stacks), plan=plan)


def snippet_of(*requests: Request, comparison: Comparison = COMPARISON, cell: Cell | None = None, mutants: tuple[str, ...] = ()) -> str:
    case = Case(name="a case", inputs={})
    return reproducer.snippet(
        cell or cell_of("a.matmul", Question.PRECISION), case, comparison, requests, rerun="--seed 7", mutants=mutants
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    configure(tmp_path, one=[], two=[])
    stacks = {name: info for name, info in discover.discover(tmp_path / "parity.toml").items() if name in ("one", "two")}

    def known() -> dict[str, StackInfo]:
        return stacks

    monkeypatch.setattr(discover, "discover", known)
    return tmp_path


def failed(run: Run, question: Question) -> Result:
    """The first; of precision that in float32."""
    return next(result for result in run.results if result.status is Status.FAIL and result.question == question)


@pytest.mark.parametrize("device", ["NEGATED", "BF16", "NAN"])
@pytest.mark.parametrize("question", [Question.PRECISION, Question.SAME_FUNCTION])
def test_a_snippet_shows_the_failure_again(folder: Path, device: str, question: Question) -> None:
    run = session.run(Options(checks=("a.matmul",), devices={"two": device}, profile="quick"), Progress())
    result = failed(run, question)
    done = execute(result.snippet, folder)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr, done.stderr
    assert "allowed difference" in done.stdout
    healthy = execute(result.snippet.replace(f'"{device}"', '"CPU"'), folder)
    assert healthy.returncode == 0, healthy.stderr


MUTANT = "torch-primitive-softmax-in-float32"


@pytest.fixture(scope="module")
def mutant_run() -> Run:
    """A real stack with a planted bug, asked an operation and its law."""
    return session.run(
        Options(checks=("a.softmax", "a.law_softmax"), stacks=("torch_qlora",), profile="quick", mutants=(MUTANT,)), Progress()
    )


def test_a_snippet_of_a_planted_bug_plants_it_again(mutant_run: Run, tmp_path: Path) -> None:
    result = next(result for result in mutant_run.results if result.status is Status.FAIL and result.id == "a.softmax")
    assert mutant_run.exit_code == 1
    assert f"mutants=['{MUTANT}']" in result.snippet
    done = execute(result.snippet, tmp_path)
    assert done.returncode == 1, done.stdout
    assert "AssertionError" in done.stderr, done.stderr
    healthy = execute(result.snippet.replace(f"mutants=['{MUTANT}'],", ""), tmp_path)
    assert healthy.returncode == 0, healthy.stderr


TRICKY = np.array([[0.1, -0.0, 1e-45, 3.4028235e38], [np.nextafter(np.float32(1), np.float32(2)), 2.0**-149, -1.5, 7e22]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "uint8", "int64"])
def test_tensors_are_spelt_bit_for_bit(dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    with np.errstate(over="ignore"):
        array = (np.abs(TRICKY) % 200 if kind.kind in "iu" else TRICKY).astype(kind)
    array = np.where(np.isfinite(array), array, kind.type(1)).astype(kind)
    spelt = eval(reproducer._spell(array), {"np": np})
    assert spelt.dtype == array.dtype
    assert spelt.shape == array.shape
    assert spelt.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinities_and_nan_are_spelt_so_that_python_reads_them(dtype: str) -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0], dtype=dtype)
    spelt = eval(reproducer._spell(array), {"np": np})
    np.testing.assert_array_equal(spelt, array)
    assert np.signbit(spelt[3])
    comparison = dataclasses.replace(COMPARISON, wanted=-np.inf)
    assert 'wanted = float(one_matmul["y"][(1, 0)]), float("-inf")' in snippet_of(request(), comparison=comparison)


def test_a_special_value_that_came_out_wrong_gives_a_snippet_that_runs() -> None:
    """Two judgements of each function's answer, of which there are several in one case."""
    cell = cell_of("a.elementary_special", Question.PRECISION)
    case = find(cell.check.cases, lambda case: True, settings=settings(database=None, derandomize=True))
    assert cell.plan is not None
    requests = cell.plan.requests(case)
    one = Answered(stack="one", capabilities=CAPABILITIES, answers=[{"y": np.zeros_like(asked.tensors["x"])} for asked in requests])
    with np.errstate(all="ignore"):
        failed = [comparison for comparison in cell.plan.judge(case, [one], 1e-9) if not comparison.passed]
    assert failed
    for comparison in failed:
        text = reproducer.snippet(cell, case, comparison, requests, rerun="--seed 7", mutants=())
        compile(text, "snippet", "exec")
        assert "judged(" in text
        assert repr(comparison.tensor) in text


def test_a_law_that_several_requests_decide_is_judged_again(mutant_run: Run, tmp_path: Path) -> None:
    """What no two elements show. The one input is shown, not the requests that are made from it."""
    result = next(result for result in mutant_run.results if result.status is Status.FAIL and result.id == "a.law_softmax")
    judged_again(result, {"x", "y_bar"}, f"mutants=['{MUTANT}'],", "", tmp_path)


def test_a_mean_is_judged_again(folder: Path) -> None:
    """What no two elements show either."""
    run = session.run(Options(checks=("a.matmul_random",), stacks=("two",), devices={"two": "BF16"}, profile="quick"), Progress())
    judged_again(failed(run, Question.PRECISION), {"a", "b", "y_bar"}, "'BF16'", "'CPU'", folder)


def judged_again(result: Result, tensors: set[str], wrong: str, right: str, folder: Path) -> None:
    """The snippet spells these tensors, fails as it is, and passes where what is wrong is put right."""
    assert {line.split('"')[1] for line in result.snippet.splitlines() if "np.array(" in line} == tensors
    assert result.snippet.count("np.array(") == len(tensors)
    assert wrong in result.snippet
    done = execute(result.snippet, folder)
    assert done.returncode == 1, done.stdout
    assert "AssertionError" in done.stderr, done.stderr
    healthy = execute(result.snippet.replace(wrong, right), folder)
    assert healthy.returncode == 0, healthy.stderr


def test_zeros_of_another_sign_are_judged_again() -> None:
    """Their difference is 0: an assertion on it would pass."""
    zeros = dataclasses.replace(COMPARISON, unit="elements that differ", got=0.0, wanted=-0.0)
    case = Case(name="a case", inputs={"float32": request().tensors})
    text = reproducer.snippet(cell_of("a.matmul", Question.PRECISION), case, zeros, [request()], rerun="--seed 7", mutants=())
    assert "judged(" in text


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).standard_normal(shape))
    spelt = eval(reproducer._spell(array), {"np": np})
    assert spelt.shape == shape


def request(size: int = 4, **more: object) -> Request:
    made = Request(
        op="matmul", attrs={"dtype": "float32"}, tensors={"a": np.ones((size, size), np.float32), "b": np.eye(size, dtype=np.float32)}
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def test_a_snippet_says_what_it_is_about() -> None:
    text = snippet_of(request())
    assert text.startswith("# a.matmul | precision | float32 | one on CPU\n# a case\n# y: absolute difference 2, allowed 0.5 (a test)\n")
    compile(text, "snippet", "exec")
    assert "assert abs(got - wanted) <= 0.5" in text


def test_a_weight_of_a_file_is_named_and_not_spelt() -> None:
    reference = FileReference(sha256="0" * 64, tensor="w", path="/models/m.safetensors")
    text = snippet_of(request(1000, references={"a": reference, "b": reference}))
    assert "FileReference(sha256='0000" in text
    assert len(text) < 2000
    compile(text, "snippet", "exec")


def test_a_case_that_is_too_large_names_the_run_that_shows_it() -> None:
    cell = cell_of("a.matmul", Question.SAME_FUNCTION, ("one", "torch_qlora"))
    text = snippet_of(request(1000), mutants=("torch-bfloat16-operand", "tinygrad-swapped-nibble"), cell=cell)
    compile(text, "snippet", "exec")
    command = text.splitlines()[-1]
    assert "parity run --only a.matmul --stacks one,torch_qlora" in command
    assert "--seed 7" in command
    assert "--mutant torch-bfloat16-operand" in command
    assert "tinygrad-swapped-nibble" not in command, "a mutant of a stack that the command leaves out is refused"


def test_a_case_that_is_too_large_names_its_device() -> None:
    cell = dataclasses.replace(cell_of("a.matmul", Question.PRECISION), devices=("WEBGPU",))
    assert "--device one=WEBGPU" in snippet_of(request(1000), cell=cell).splitlines()[-1]


def test_two_requests_of_one_operation_are_told_apart() -> None:
    text = snippet_of(request(), request())
    assert "one_matmul_0 = ask(" in text
    assert "one_matmul_1 = ask(" in text
    compile(text, "snippet", "exec")
