"""The checkpoints of a run: which one it goes on from, and which are not its own."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifacts import training_checkpoint
from contract.artifacts.training_checkpoint import STATE, TENSORS, TrainingCheckpoint
from contract.errors import ContractError, ContractErrors
from contract.run.spec import FineTuneContract
from contract.training import checkpoints, session
from contract.training.inputs import Run, prepare
from tests.contract.training import killed, toy_run
from tests.contract.training.killed import Deaf, trained
from tests.contract.training.toy_stack import ToyTrainer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = toy_run.make(tmp_path_factory.mktemp("toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return toy_run.run_of(home)


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of steps 2, 4 and 6."""
    for step in (2, 4, 6):
        save(tmp_path, run, step)
    return tmp_path


def save(folder: Path, run: Run, step: int) -> Path:
    epoch, step_of_epoch = checkpoints.place(run, step)
    progress = training_checkpoint.Progress(
        step=step, epoch=epoch, step_of_epoch=step_of_epoch, skipped=1, rows_of_epoch=2, skipped_of_epoch=1
    )  # fmt: skip
    state = ToyTrainer(run).state()
    drawn = np.random.default_rng(step)
    state = replace(state, v={name: drawn.random(matrix.shape, np.float32) for name, matrix in state.v.items()}, updates=step)
    return checkpoints.save(folder, run, state, progress, stack="toy", packages={"twostack": "1"})


def truncated(path: Path) -> None:
    (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-7])


def flipped(path: Path) -> None:
    content = bytearray((path / TENSORS).read_bytes())
    content[-2] ^= 1
    (path / TENSORS).write_bytes(content)


def gone(path: Path) -> None:
    (path / TENSORS).unlink()


def no_json(path: Path) -> None:
    (path / STATE).write_text("{")


def two_faults(path: Path) -> None:
    value = json.loads((path / STATE).read_text())
    (path / STATE).write_text(json.dumps(value | {"seed": -1, "updates": -1}))


@pytest.mark.parametrize("spoil", [truncated, flipped, gone, no_json, two_faults])
def test_a_damaged_one_is_refused_by_name_and_the_last_good_one_named(folder: Path, spoil: Callable[[Path], None]) -> None:
    two, four, six = checkpoints.of_run(folder)
    assert checkpoints.newest(folder) == six
    spoil(six)
    with pytest.raises(ContractError) as error:
        checkpoints.newest(folder)
    assert error.value.place.startswith(str(six))
    assert error.value.remedy == f"remove {six}: --resume then goes on from {four}, the last good one"
    spoil(four)
    with pytest.raises(ContractError, match=f"remove {four} and {six}: --resume then goes on from {two}"):
        checkpoints.newest(folder)
    assert checkpoints.find_last_good(folder) == two
    spoil(two)
    with pytest.raises(ContractError, match="--resume then begins anew"):
        checkpoints.newest(folder)
    assert checkpoints.find_last_good(folder) is None


def test_what_is_no_checkpoint_is_none(folder: Path) -> None:
    inside = folder / "checkpoints"
    for name in ("step-1", "step-00000009.old", ".step-00000008.x.partial", "notes"):
        (inside / name).mkdir()
    assert [path.name for path in checkpoints.of_run(folder)] == ["step-00000002", "step-00000004", "step-00000006"]
    checkpoints.sweep(folder)
    assert not (inside / ".step-00000008.x.partial").exists()
    assert (inside / "notes").exists()


def test_what_is_saved_is_what_a_trainer_gets_in_the_initial_adapter_s_order(folder: Path, run: Run) -> None:
    state = checkpoints.state_of(run, training_checkpoint.read(checkpoints.of_run(folder)[1]))
    assert list(state.adapter) == list(state.m) == list(state.v) == list(run.initial)
    drawn = np.random.default_rng(4)
    for name, matrix in run.initial.items():
        assert state.adapter[name].tobytes() == matrix.tobytes()
        assert state.v[name].tobytes() == drawn.random(matrix.shape, np.float32).tobytes()
    assert state.updates == 4


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"contract_digest": "1" * 64}, ": contract_digest: got " + "1" * 64),
        ({"stack": "other"}, ": stack: got other; allowed: toy"),
        ({"base_sha256": "2" * 64}, ": base_sha256: got " + "2" * 64),
        ({"data": {"data.train_file": "3" * 64}}, ": data: data.train_file: got " + "3" * 64),
        ({"step": 5}, "got (5, 0, 4); allowed: (5, 1, 0)"),
        ({"step": 400}, "got (400, 0, 4); allowed: (15, 3, 0)"),
    ],
)
def test_one_of_another_run_is_refused_by_what_differs(folder: Path, run: Run, changed: dict[str, Any], words: str) -> None:
    path = checkpoints.of_run(folder)[1]
    found: TrainingCheckpoint = training_checkpoint.read(path)
    checkpoints.require_own(run, path, found, stack="toy")
    if "step" in changed:
        changed = {"progress": found.progress.model_copy(update=changed)}
    with pytest.raises(ContractError) as error:
        checkpoints.require_own(run, path, replace(found, **changed), stack="toy")
    assert words in str(error.value)
    assert str(error.value).startswith(str(path))


def test_one_of_another_stack_is_refused_by_name(home: Path, folder: Path) -> None:
    """Also where the contract names the other stack, so that its digest differs too."""
    other = prepare(FineTuneContract.model_validate(toy_run.fields(home) | {"stack": "tinygrad_lora"}), cache=home / "cache")
    path = checkpoints.of_run(folder)[1]
    words = "stack: got toy; allowed: tinygrad_lora, which is this run's; take a checkpoint of tinygrad_lora, or go on with toy: set the f"
    with pytest.raises(ContractError, match=words):
        checkpoints.require_own(other, path, training_checkpoint.read(path), stack="tinygrad_lora")


def test_both_digests_are_named(home: Path, folder: Path, run: Run) -> None:
    other = toy_run.run_of(home, learning_rate=0.02)
    path = checkpoints.of_run(folder)[1]
    with pytest.raises(ContractError) as error:
        checkpoints.require_own(other, path, training_checkpoint.read(path), stack="toy")
    assert run.digest in error.value.got
    assert other.digest in error.value.allowed


def test_one_with_other_matrices_is_refused(home: Path, folder: Path, run: Run) -> None:
    path = checkpoints.of_run(folder)[1]
    found = training_checkpoint.read(path)
    initial = dict(run.initial)
    name = min(initial)
    for other, words in (({**initial, name: initial[name][:1]}, "shape [1, "), ({**initial, "lm_head.lora_a": initial[name]}, "got none")):
        with pytest.raises(ContractError, match="lora") as error:
            checkpoints.require_own(replace(run, initial=other), path, found, stack="toy")
        assert words in str(error.value)


def test_a_run_begins_from_the_checkpoint_that_its_contract_names(home: Path, tmp_path: Path) -> None:
    """exec.resume_from: the digest that checkpoints are bound to leaves it out."""
    trained(home, tmp_path / "whole")
    trained(home, tmp_path / "first", channel=Deaf(cancel_at=6))
    there = str(checkpoints.of_run(tmp_path / "first")[-1])
    with pytest.raises(ContractError, match="contract_digest"):
        session.train(Deaf(), killed.made, folder=str(tmp_path / "x"), **killed.request(home, resume=there, seed=5))
    values = session.train(
        Deaf(), killed.made, folder=str(tmp_path / "second"), **killed.request(home, resume=there, resume_from=there)
    ).values  # fmt: skip
    assert (values["end"], values["step"]) == ("done", toy_run.STEPS)
    assert toy_run.outputs(tmp_path / "second") == toy_run.outputs(tmp_path / "whole")
    assert (tmp_path / "second" / "telemetry.jsonl").read_bytes().count(b"\n") == 9


def test_a_folder_in_which_another_run_is_at_work_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOCK_SECONDS", 0.0)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ContractError, match="another run is at work"):
            trained(home, tmp_path)
    finally:
        os.close(descriptor)
    assert trained(home, tmp_path, max_steps=4)["end"] == "done"


def test_a_folder_s_manifest_of_another_contract_is_refused(home: Path, tmp_path: Path) -> None:
    """Also where the run was killed before its first checkpoint."""
    trained(home, tmp_path, spoilt="OOM0", max_steps=4)
    with pytest.raises((ContractError, ContractErrors), match="with which the run in this folder began"):
        trained(home, tmp_path, max_steps=5)
