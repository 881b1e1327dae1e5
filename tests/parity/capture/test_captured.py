"""Captures of two stacks in NumPy, judged: the verdicts of a run on the same stacks; whatever is missing is never passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import Interrupted, MissingError, UserError
from contract.worker import discover
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import session, workers
from parity.capture import judged, store, take
from parity.capture.store import Index
from parity.checks import products
from parity.options import Options, Progress
from parity.report.record import Run, Status
from tests.parity.capture.answering import sets
from tests.parity.numpy_stack import configure

CHECKS = ("a.matmul", "a.silu", "a.embedding")
EXAMPLES = 12 + len(products.SHAPES)
"""Of a.matmul: drawn at the profile quick, and fixed."""
Capture = Callable[..., Path]


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, StackInfo]:
    """Two NumPy stacks, and no others; one matrix that they are held to."""
    stacks = {name: info for name, info in discover.discover(configure(tmp_path, one=[], two=[])).items() if name in ("one", "two")}
    monkeypatch.setattr(discover, "discover", lambda: stacks)
    monkeypatch.setattr(discover, "installed", lambda: stacks)
    monkeypatch.setattr(matrix, "COVERAGE_FILE", tmp_path / "coverage.json")
    matrix.write_coverage(session.coverage_of_all())
    monkeypatch.setattr(workers, "sets", sets())
    return stacks


def options(*checks: str, stack: str = "", device: str = "CPU", **more: Any) -> Options:
    chosen = {"stacks": (stack,), "devices": {stack: device}} if stack else {}
    return Options(checks=checks, profile="quick", waiver_file=Path("no waivers"), **{**chosen, **more})


@pytest.fixture
def capture(known: dict[str, StackInfo], tmp_path: Path) -> Capture:
    def made(stack: str, *checks: str, device: str = "CPU", progress: Progress = Progress(), **more: Any) -> Path:  # noqa: B008
        folder = tmp_path / "captures" / stack
        take.take(options(*(checks or CHECKS), stack=stack, device=device, **more), folder, progress)
        return folder

    return made


def told(run: Run) -> list[object]:
    """All of a run's results but how long they took."""
    return [result.model_copy(update={"seconds": 0.0}) for result in run.results]


def statuses(run: Run) -> set[Status]:
    return {result.status for result in run.results} - {Status.NOT_APPLICABLE}


def test_the_verdicts_are_those_of_a_run(capture: Capture) -> None:
    checks = (*CHECKS, "a.law_swiglu")
    run = session.run(options(*checks), Progress())
    compared = judged.judge([capture("two", *checks), capture("one", *checks)], Progress())
    assert run.exit_code == compared.exit_code == 0
    assert {"same_function", "precision"} <= {result.question for result in compared.results if result.status is Status.PASS}
    assert told(compared) == told(run)
    assert compared.stacks == run.stacks


@pytest.mark.parametrize("device", ["NEGATED", "NAN", "RAISES", "MISSING", "DIES"])
def test_a_stack_that_goes_wrong_gets_the_verdict_of_a_run(capture: Capture, device: str) -> None:
    """A failure is not shrunk, so that it shows its first input and not its smallest."""
    run = session.run(options("a.matmul", devices={"two": device}), Progress())
    compared = judged.judge([capture("one", "a.matmul"), capture("two", "a.matmul", device=device)], Progress())
    assert compared.exit_code == run.exit_code != 0
    for one, other in zip(compared.results, run.results, strict=True):
        assert (one.id, one.question, one.dtype, one.stacks) == (other.id, other.question, other.dtype, other.stacks)
        assert one.status is other.status
        assert [(tensor.tensor, str(tensor.observed), tensor.bound) for tensor in one.tensors] == [
            (tensor.tensor, str(tensor.observed), tensor.bound) for tensor in other.tensors
        ]
        assert one.snippet == ""
        if one.status is Status.ERROR:
            assert one.reason == other.reason
        if one.status is Status.FAIL:
            assert one.again == other.again


def test_a_nan_is_kept_bit_for_bit(capture: Capture) -> None:
    folder = capture("two", "a.matmul", device="NAN")
    recorded = store.read_example(store.path_of(folder, "a.matmul", 0), "two")
    assert recorded is not None
    answers = [outcome.tensors["y"] for outcome in recorded.outcomes.values()]
    assert {array.dtype.name for array in answers} == {"float32", "float64"}
    assert all(np.isnan(array.reshape(-1)[0]) for array in answers)


def test_what_one_capture_lacks_is_not_covered(capture: Capture) -> None:
    compared = judged.judge([capture("one", "a.matmul", "a.silu"), capture("two", "a.matmul")], Progress())
    assert compared.exit_code == 4
    by_check = {result.id: set[Status]() for result in compared.results}
    for result in compared.results:
        by_check[result.id].add(result.status)
        if result.id == "a.silu" and "two" in result.stacks and result.status is not Status.NOT_APPLICABLE:
            assert result.status is Status.NOT_COVERED
            assert "does not have a.silu" in result.reason
    assert by_check["a.matmul"] == {Status.PASS, Status.NOT_APPLICABLE}


def interrupt(after: int) -> Progress:
    left = [after]

    def step() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return Progress(step=step)


def test_an_interrupted_capture_is_whole_up_to_there_and_goes_on(capture: Capture, tmp_path: Path) -> None:
    one = capture("one")
    with pytest.raises(Interrupted, match=r"whole up to there \(1 checks\); the same command goes on"):
        capture("two", progress=interrupt(EXAMPLES + 5))
    two = tmp_path / "captures" / "two"
    assert not store.read_index(two).complete
    compared = judged.judge([one, two], Progress())
    assert compared.exit_code == 4
    reasons = [result.reason for result in compared.results if result.status is Status.NOT_COVERED]
    assert any("was interrupted before it had all of a.silu" in reason for reason in reasons)
    assert {result.status for result in compared.results if result.id == "a.matmul"} == {Status.PASS, Status.NOT_APPLICABLE}
    taken = take.take(options(*CHECKS, stack="two"), two, Progress())
    assert taken.kept > 0
    assert taken.asked > 0
    assert told(judged.judge([one, two], Progress())) == told(session.run(options(*CHECKS), Progress()))


def test_a_whole_capture_is_not_asked_again(capture: Capture, tmp_path: Path) -> None:
    folder = capture("one", "a.matmul")
    before = {path: path.read_bytes() for path in folder.glob("*/*")}
    taken = take.take(options("a.matmul", stack="one"), folder, Progress())
    assert (taken.asked, taken.exit_code) == (0, 0)
    assert taken.examples == len(before) == EXAMPLES
    assert taken.size > sum(map(len, before.values()))
    assert {path: path.read_bytes() for path in folder.glob("*/*")} == before


def test_an_input_that_is_another_one_here_is_not_judged(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [capture("one", "a.matmul"), capture("two", "a.matmul")]
    monkeypatch.setattr(store, "draws", lambda: {"twostack": "9", "numpy": "9", "hypothesis": "9"})
    path = store.path_of(folders[0], "a.matmul", 3)
    recorded = store.read_example(path, "one")
    assert recorded is not None
    store.write_example(path, recorded.model_copy(update={"digest": "0" * 64}), "one")
    compared = judged.judge(folders, Progress())
    assert compared.exit_code == 4
    for result in compared.results:
        if result.status is not Status.NOT_APPLICABLE:
            assert result.status is (Status.NOT_COVERED if "one" in result.stacks else Status.PASS)
    (reason, *_) = [result.reason for result in compared.results if result.status is Status.NOT_COVERED]
    assert "example 3 of a.matmul is another input here" in reason
    assert "hypothesis 9 here" in reason


def test_an_example_whose_file_is_gone_is_not_covered(capture: Capture) -> None:
    folder = capture("one", "a.matmul")
    store.path_of(folder, "a.matmul", 0).unlink()
    compared = judged.judge([folder], Progress())
    assert statuses(compared) == {Status.NOT_COVERED}


def test_answers_of_another_stack_are_refused(capture: Capture) -> None:
    """Else two copies of one stack's answers would agree in every bit."""
    one, two = capture("one", "a.matmul"), capture("two", "a.matmul")
    store.path_of(one, "a.matmul", 0).write_bytes(store.path_of(two, "a.matmul", 0).read_bytes())
    with pytest.raises(UserError, match=r"0.safetensors holds answers of two, and the capture is of one; copy the capture again"):
        judged.judge([one, two], Progress())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cut short"),
        (b"\xff" * 64, "a header of"),
        (b"\x02\0\0\0\0\0\0\0{}", "__metadata__"),
        (b"\x1e\0\0\0\0\0\0\0" + b'{"__metadata__":{"capture":1}}', "should be an object"),
    ],
)
def test_a_file_that_is_no_example_is_refused_in_words(capture: Capture, content: bytes, why: str) -> None:
    folder = capture("one", "a.matmul")
    store.path_of(folder, "a.matmul", 0).write_bytes(content)
    with pytest.raises(UserError, match=rf"0.safetensors is no example of a capture \(.*{why}"):
        judged.judge([folder], Progress())


def test_a_capture_is_named_once(capture: Capture) -> None:
    """Else two names of one stack's answers would be judged as one stack, and nothing asked of a pair."""
    one = capture("one", "a.matmul")
    with pytest.raises(UserError, match="is named twice; give a capture of each stack once"):
        judged.judge([one, one.parent / one.name / ".." / one.name], Progress())


def test_a_folder_that_holds_no_capture_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"holds no capture .* make one: parity capture"):
        judged.judge([tmp_path], Progress())


@pytest.mark.parametrize("text", ["{", '{"stack": "one"}', '{"schema_version": 2}'])
def test_an_index_that_is_not_sound_is_refused_by_field(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index.json: .*; capture again with this version"):
        judged.judge([tmp_path], Progress())


def changed(folder: Path, **fields: object) -> Path:
    index = store.read_index(folder).model_copy(update=fields)
    store.write_index(folder, Index.model_validate(index.model_dump()))
    return folder


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"seed": 5}, "with seed 20230523, .* with 5"),
        ({"profile": "ci"}, "with profile 'quick'"),
        ({"stack": "one"}, "both hold the stack one"),
    ],
)
def test_captures_of_other_inputs_are_refused(capture: Capture, fields: Mapping[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        judged.judge([capture("one", "a.matmul"), changed(capture("two", "a.matmul"), **fields)], Progress())


def test_a_folder_with_something_else_is_left_alone(capture: Capture, tmp_path: Path) -> None:
    (tmp_path / "captures" / "one").mkdir(parents=True)
    (tmp_path / "captures" / "one" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        capture("one", "a.matmul")
    with pytest.raises(UserError, match="is no folder"):
        take.take(options("a.matmul", stack="one"), tmp_path / "captures" / "one" / "letter.txt", Progress())


def test_another_capture_in_the_same_folder_is_refused(capture: Capture) -> None:
    capture("one", "a.matmul")
    with pytest.raises(UserError, match="holds a capture with another seed: 20230523, now 5"):
        capture("one", "a.matmul", seed=5)
    with pytest.raises(UserError, match="holds a capture with another device: CPU, now NEGATED"):
        capture("one", "a.matmul", device="NEGATED")


def test_an_error_for_an_answer_is_told(known: dict[str, StackInfo], tmp_path: Path) -> None:
    taken = take.take(options("a.matmul", stack="two", device="RAISES"), tmp_path / "out", Progress())
    assert taken.failed > 0
    assert taken.exit_code == 3


def test_a_missing_checkpoint_is_told(known: dict[str, StackInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parity.checks import real_weights

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    real_weights.weight.cache_clear()
    taken = take.take(options("b.unnest", stack="two"), tmp_path / "out", Progress())
    assert taken.exit_code == 4
    assert "finetune fetch" in taken.missing[0]
    compared = judged.judge([tmp_path / "out"], Progress())
    assert statuses(compared) == {Status.NOT_COVERED}


def test_a_stack_is_asked_what_only_a_pair_is_judged_by(capture: Capture) -> None:
    check = next(check for check in session.registry.CHECKS if check.id == "a.matmul_random")
    folder = capture("one", check.id)
    recorded = store.read_example(store.path_of(folder, check.id, 0), "one")
    assert recorded is not None
    assert len(recorded.outcomes) == len({plan.dtype for plan in check.plans})


def test_a_record_says_where_the_answers_are_from(capture: Capture) -> None:
    compared = judged.judge([capture("one", "a.matmul")], Progress())
    assert compared.machine["one answered"].startswith("20")
