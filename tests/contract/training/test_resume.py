"""Killed at any moment and resumed: the same adapter, bit for bit, as the run that nobody disturbed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from contract.artifacts.telemetry import read_telemetry
from contract.artifacts.training_checkpoint import Progress, read
from contract.training import checkpoints
from tests.contract.training import killed, toy_run
from tests.contract.training.toy_run import STEPS, outputs
from tests.contract.training.toy_stack import ToyTrainer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy_run.make(tmp_path_factory.mktemp("toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert killed.trained(folder, folder / "straight")["end"] == "done"
        yield folder


def whole(home: Path, folder: Path) -> None:
    """The run is the undisturbed one, and the folder holds nothing but what that one has."""
    straight = home / "straight"
    assert outputs(folder) == outputs(straight)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names == {str(path.relative_to(straight)) for path in straight.rglob("*")}
    mine, its = read_telemetry(folder / "telemetry.jsonl"), read_telemetry(straight / "telemetry.jsonl")
    assert [(row.step, row.loss, row.lr, row.grad_norm, row.tokens, row.validation_loss) for row in mine.rows] == [
        (row.step, row.loss, row.lr, row.grad_norm, row.tokens, row.validation_loss) for row in its.rows
    ]
    final = checkpoints.newest(folder)
    assert final is not None
    assert read(final).progress.step == STEPS
    for name in ("training_checkpoint.json", "training_checkpoint.safetensors"):
        assert (final / name).read_bytes() == (straight / "checkpoints" / final.name / name).read_bytes()


def test_the_straight_run_trains(home: Path) -> None:
    rows = read_telemetry(home / "straight" / "telemetry.jsonl").rows
    assert len(rows) == STEPS
    assert rows[-1].loss < rows[0].loss / 2


def operations(home: Path) -> int:
    return killed.count_operations(lambda: killed.trained(home, home / "counted"), home / "count")


def disturbed(home: Path, folder: Path, draw: random.Random, total: int) -> int:
    """A run that is killed at two operations, and then goes on to its end: how often it was killed."""
    kills = sum(killed.killed_at(draw.randrange(total), lambda: killed.trained(home, folder)) == -9 for _ in range(2))
    killed.trained(home, folder)
    whole(home, folder)
    return kills


def test_a_run_killed_at_file_operations_goes_on_to_the_same_bits(home: Path, tmp_path: Path) -> None:
    """A sample of all operations; the nightly test has each of them."""
    total, draw = operations(home), random.Random(6)
    assert sum(disturbed(home, tmp_path / f"run{number}", draw, total) for number in range(5)) >= 5


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(8))
def test_a_run_killed_at_each_file_operation_goes_on_to_the_same_bits(home: Path, tmp_path: Path, first: int) -> None:
    for number in range(first, operations(home), 8):
        folder = tmp_path / f"run{number}"
        assert killed.killed_at(number, lambda folder=folder: killed.trained(home, folder)) == -9
        killed.trained(home, folder)
        whole(home, folder)


def checkpoint_killed_at(home: Path, folder: Path, picked: Callable[[int], Iterable[int]]) -> None:
    """The fourth checkpoint of a run, with whose arrival the first one goes, killed at some operations of its writer."""
    run = toy_run.run_of(home)
    state = ToyTrainer(run).state()

    def save(step: int) -> None:
        progress = Progress(step=step, epoch=0, step_of_epoch=step, skipped=0, rows_of_epoch=step, skipped_of_epoch=0)
        checkpoints.save(folder, run, state, progress, stack="toy", packages={"twostack": "1"})

    def afresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for step in (1, 2, 3):
            save(step)

    afresh()
    total, seen = killed.count_operations(lambda: save(4), home / "count"), set()
    for at in picked(total):
        afresh()
        assert killed.killed_at(at, lambda: save(4)) == -9
        found = [path.name[-1] for path in checkpoints.of_run(folder)]
        seen.add("".join(found))
        newest = checkpoints.newest(folder)  # which refuses a damaged one
        assert newest is not None
        assert newest.name[-1] == found[-1]
        assert all(read(path).progress.step == int(path.name[-1]) for path in checkpoints.of_run(folder))
        checkpoints.sweep(folder)
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"step-0000000{step}" for step in found[-3:]]
    assert seen == {"123", "1234", "234"}


def test_a_checkpoint_killed_inside_its_writer_is_there_whole_or_not_at_all(home: Path, tmp_path: Path) -> None:
    """Some of the operations that write it, and each of those that give it its name and remove the oldest one."""
    checkpoint_killed_at(home, tmp_path / "run", lambda total: (*range(0, total - 12, 8), *range(total - 12, total)))


@pytest.mark.nightly
def test_a_checkpoint_killed_at_each_operation_of_its_writer_is_there_whole_or_not_at_all(home: Path, tmp_path: Path) -> None:
    checkpoint_killed_at(home, tmp_path / "run", range)


def clocked(home: Path, folder: Path, draw: random.Random) -> int:
    """A run that is killed after two spans of time: how often it was killed before its end."""

    def work() -> None:
        killed.trained(home, folder, seconds=0.01)

    kills = sum(killed.killed_after(draw.uniform(0.0, 0.3), work) == -9 for _ in range(2))
    killed.trained(home, folder)
    whole(home, folder)
    return kills


def test_a_run_killed_by_the_clock_goes_on_to_the_same_bits(home: Path, tmp_path: Path) -> None:
    draw = random.Random(7)
    assert sum(clocked(home, tmp_path / f"run{number}", draw) for number in range(2)) >= 1


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_runs_killed_by_the_clock_at_forty_moments_go_on_to_the_same_bits(home: Path, tmp_path: Path) -> None:
    draw = random.Random(8)
    assert sum(clocked(home, tmp_path / f"run{number}", draw) for number in range(20)) >= 20


def test_a_run_that_ended_ends_again_with_the_same_bits(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed.trained(home, folder)
    values = killed.trained(home, folder)
    assert (values["end"], values["step"]) == ("done", STEPS)
    whole(home, folder)
