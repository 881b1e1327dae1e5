"""A run's course: steps in order, telemetry, validation, skipped rows, and each way in which it may end."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifacts import safetensors_writer, telemetry
from contract.artifacts.manifest import read_manifest
from contract.artifacts.telemetry import read_telemetry
from contract.artifacts.training_checkpoint import read_state
from contract.training import checkpoints
from contract.training.inputs import Run
from contract.training.trainer import StepDone
from tests.contract.training import killed, toy_run
from tests.contract.training.killed import Deaf, trained
from tests.contract.training.toy_run import STEPS, outputs
from tests.contract.training.toy_stack import ToyTrainer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy_run.make(tmp_path_factory.mktemp("toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert trained(folder, folder / "straight")["end"] == "done"
        yield folder


def with_rows(folder: Path, long: int, rows: int = 12) -> Path:
    """A home whose first `long` of `rows` rows have a prompt that leaves no room for the answer, cut on the right."""
    toy_run.make(folder)
    lines = [{"prompt": "question " * (40 if number < long else 1), "response": "answer"} for number in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Noting(ToyTrainer):
    """Notes the learning rates and the numbers of the steps that it's asked for."""

    asked: list[tuple[int, float]]

    def step(self, step: Any, learning_rate: float) -> StepDone:
        self.asked.append((step.number, learning_rate))
        return super().step(step, learning_rate)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    monkeypatch.setattr(killed, "ToyTrainer", Noting)
    Noting.asked = []
    return Noting.asked


def test_rows_tell_each_step_and_validation_stands_at_the_ends_of_epochs(home: Path) -> None:
    rows = read_telemetry(home / "straight" / "telemetry.jsonl").rows
    rates = toy_run.run_of(home).learning_rates
    assert [(row.step, row.lr) for row in rows] == [(step + 1, rates[step]) for step in range(STEPS)]
    assert [row.step for row in rows if row.validation_loss is not None] == [5, 10, 15]
    assert [row.step for row in rows if row.validation_loss_before is not None] == [1]
    assert all(row.tokens > 0 and row.tokens_per_second > 0 and row.memory_bytes == 10**8 for row in rows)


def test_validation_is_the_mean_over_the_tokens_that_are_held_back(home: Path) -> None:
    run = toy_run.run_of(home)
    trainer = ToyTrainer(run)
    batches = [batch for step in run.validation.steps() for batch in step.batches]
    wanted = sum(trainer.loss_sum(batch) for batch in batches) / sum(batch.tokens for batch in batches)
    rows = read_telemetry(home / "straight" / "telemetry.jsonl").rows
    assert rows[0].validation_loss_before == wanted


def test_a_run_without_rows_held_back_has_no_validation(home: Path, tmp_path: Path) -> None:
    trained(home, tmp_path / "run", data={"validation_split": 0.0}, max_steps=4)
    rows = read_telemetry(tmp_path / "run" / "telemetry.jsonl").rows
    assert [(row.validation_loss, row.validation_loss_before) for row in rows] == [(None, None)] * 4


def test_a_run_that_max_steps_ends_inside_an_epoch_is_validated_there(home: Path, tmp_path: Path) -> None:
    trained(home, tmp_path / "run", max_steps=4)
    rows = read_telemetry(tmp_path / "run" / "telemetry.jsonl").rows
    assert [row.step for row in rows if row.validation_loss is not None] == [4]


def test_checkpoints_come_every_so_many_steps_and_at_the_end_and_three_stay(home: Path) -> None:
    assert [path.name for path in checkpoints.of_run(home / "straight")] == ["step-00000012", "step-00000014", "step-00000015"]
    progress = read_state(checkpoints.of_run(home / "straight")[1]).progress
    assert (progress.step, progress.epoch, progress.step_of_epoch, progress.rows_of_epoch) == (14, 2, 4, 24)


def test_a_step_whose_rows_are_all_skipped_has_its_rate_and_no_update(tmp_path: Path, noted: list[tuple[int, float]]) -> None:
    home = with_rows(tmp_path / "home", long=6, rows=12)
    changed = {"batch_size": 1, "grad_accum": 1, "max_skip_rate": 1.0, "epochs": 2}
    data = {"truncation": "right", "validation_split": 0.0}
    values = trained(home, tmp_path / "run", data=data, **changed)
    assert (values["end"], values["skipped"]) == ("done", 12)
    rows = read_telemetry(tmp_path / "run" / "telemetry.jsonl").rows
    empty = [row for row in rows if row.tokens == 0]
    assert len(rows) == 24
    assert len(empty) == 12
    assert all(math.isnan(row.loss) and row.grad_norm == 0 for row in empty)
    assert len(noted) == 12
    run: Run = toy_run.run_of(home, data=data, **changed)
    assert noted == [(row.step - 1, run.learning_rates[row.step - 1]) for row in rows if row.tokens]
    assert [row.lr for row in rows] == run.learning_rates.tolist()
    newest = checkpoints.newest(tmp_path / "run")
    assert newest is not None
    assert read_state(newest).updates == 12
    assert rows[-1].skipped == 12
    assert "12 rows were skipped: they have no token to learn" in read_manifest(tmp_path / "run" / "training_manifest.json").notes


@pytest.mark.parametrize(("allowed", "end"), [(0.5, "done"), (0.49, "skip_rate")])
def test_too_many_skipped_rows_end_the_run_after_the_epoch(tmp_path: Path, allowed: float, end: str) -> None:
    home = with_rows(tmp_path / "home", long=6, rows=12)
    more = {"data": {"truncation": "right", "validation_split": 0.0}, "max_skip_rate": allowed, "batch_size": 2, "warmup_steps": 1}
    values = trained(home, tmp_path / "run", **more)
    assert (values["end"], values["step"]) == (end, 3 if end == "skip_rate" else 9)
    if end == "skip_rate":
        assert values["message"].startswith("6 of the epoch's 12 rows (50.0%) have no token to learn")
        assert values["checkpoint"].endswith("step-00000003")
        again = trained(home, tmp_path / "run", **more)
        assert (again["end"], again["step"]) == ("skip_rate", 3)
        assert not (tmp_path / "run" / "adapter").exists()


def test_skipped_rows_are_counted_over_an_interruption(tmp_path: Path) -> None:
    home = with_rows(tmp_path / "home", long=6, rows=12)
    more = {"data": {"truncation": "right", "validation_split": 0.0}, "max_skip_rate": 0.49, "batch_size": 2, "warmup_steps": 1}
    for at in (1, 2):
        assert trained(home, tmp_path / "run", channel=Deaf(cancel_at=at), **more)["end"] == "paused"
    assert trained(home, tmp_path / "run", **more)["message"].startswith("6 of the epoch's 12 rows (50.0%)")


@pytest.mark.parametrize(("spoilt", "words"), [("NAN7", "the loss of step 7 is nan"), ("INF3", "the gradient of step 3 is inf")])
def test_a_number_that_is_none_names_step_micro_batch_and_rows(home: Path, tmp_path: Path, spoilt: str, words: str) -> None:
    values = trained(home, tmp_path / "run", spoilt=spoilt)
    step = int(spoilt[-1])
    assert (values["end"], values["step"]) == ("not_finite", step - 1)
    assert values["message"].startswith(f"{words}, in micro-batch 2 of 2: lines ")
    run = toy_run.run_of(home)
    batch = next(run.steps.steps(step - 1)).batches[1]
    lines = [str(run.rows.index.line(sample)) for (sample,) in batch.samples]
    assert f"lines {', '.join(lines)} of {home / 'rows.jsonl'}" in values["message"]
    rows = read_telemetry(tmp_path / "run" / "telemetry.jsonl").rows
    assert rows[-1].step == step
    assert not (math.isfinite(rows[-1].loss) and math.isfinite(rows[-1].grad_norm))
    assert values["checkpoint"].endswith(f"step-0000000{step - 1}")
    trained(home, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(home / "straight")


def test_a_state_that_is_not_finite_is_no_checkpoint(home: Path, tmp_path: Path) -> None:
    values = trained(home, tmp_path / "run", spoilt="BLOWUP4")
    assert values["end"] == "not_finite"
    assert "holds NaN or infinity after step 4" in values["message"]
    assert values["checkpoint"].endswith("step-00000002")


@pytest.mark.parametrize(
    ("spoilt", "words", "kept"),
    [("OOM0", "in the validation after step 0", None), ("OOM3", "in step 3", "step-00000002")],
)
def test_no_memory_says_where(home: Path, tmp_path: Path, spoilt: str, words: str, kept: str | None) -> None:
    values = trained(home, tmp_path / "run", spoilt=spoilt)
    assert values["end"] == "out_of_memory"
    assert values["message"] == f"no memory is left {words} (could not allocate 12345 bytes)"
    assert (None if values["checkpoint"] is None else Path(values["checkpoint"]).name) == kept
    trained(home, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(home / "straight")


def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(home: Path, tmp_path: Path) -> None:
    values = trained(home, tmp_path / "run", channel=Deaf(cancel_at=3))
    assert (values["end"], values["step"], Path(values["checkpoint"]).name) == ("paused", 3, "step-00000003")
    assert "paused after 3 of 15 steps" in read_manifest(tmp_path / "run" / "training_manifest.json").notes
    trained(home, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(home / "straight")
    notes = read_manifest(tmp_path / "run" / "training_manifest.json").notes
    assert "resumed from the checkpoint of step 3" in notes
    assert notes[-1] == "done after 15 of 15 steps"


def test_a_launcher_that_is_gone_is_no_reason_to_lose_the_run(home: Path, tmp_path: Path) -> None:
    class Gone(Deaf):
        def progress(self, **values: Any) -> None:
            super().progress(**values)
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    values = trained(home, tmp_path / "run", channel=Gone(cancel_at=3))
    assert (values["end"], values["step"]) == ("paused", 3)


class Full:
    """A disk that is full from the n-th call on that puts something there."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def fill(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(os, "fsync", self._guarded(os.fsync))
        patch.setattr(safetensors_writer.HashedFile, "write", self._guarded(safetensors_writer.HashedFile.write))
        patch.setattr(telemetry.TelemetryWriter, "to_disk", self._guarded(telemetry.TelemetryWriter.to_disk))

    def _guarded(self, call: Any) -> Any:
        def guarded(*arguments: Any) -> Any:
            self.calls -= 1
            if self.calls < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments)

        return guarded


@pytest.mark.parametrize("calls", [4, 40, 115, 600])
def test_a_disk_that_is_full_ends_the_run_and_leaves_what_was_there_whole(home: Path, tmp_path: Path, calls: int) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Full(calls).fill(patch)
        values = trained(home, folder)
    assert values["end"] == "output"
    assert values["message"].endswith("No space left on device")
    assert str(folder) in values["message"]
    newest = checkpoints.newest(folder)
    assert (values["checkpoint"] is None) == (newest is None)
    assert not list(folder.rglob("*.partial"))
    trained(home, folder)
    assert outputs(folder) == outputs(home / "straight")


def test_frames_tell_of_every_stage(home: Path, tmp_path: Path) -> None:
    channel = Deaf()
    trained(home, tmp_path / "run", channel=channel, packing=True, warmup_steps=1)
    # Hashing is told of a file that is not remembered, or that was written within the last two seconds.
    frames = [frame for frame in channel.frames if frame["stage"] != "hash"]
    assert list(dict.fromkeys(frame["stage"] for frame in frames)) == ["pack", "load", "begin", "validate", "train", "save"]
    assert frames[0] == {"stage": "pack", "done": 29, "of": 29}
    for frame in channel.frames:
        json.dumps(frame, allow_nan=False)


class Compiling(ToyTrainer):
    """Says that it compiled in its first two steps."""

    def step(self, step: Any, learning_rate: float) -> StepDone:
        done = super().step(step, learning_rate)
        return dataclasses.replace(done, compile_seconds=20.25) if step.number < 2 else done


def test_what_compiling_took_is_in_the_frames_and_in_the_manifest_s_notes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killed, "ToyTrainer", Compiling)
    channel = Deaf()
    trained(home, tmp_path / "run", channel=channel)
    told = [frame["compile_seconds"] for frame in channel.frames if frame["stage"] == "train"]
    assert told == [20.25, 20.25, *[0] * (STEPS - 2)]
    note = "compiling took 40 s, in or just before 2 of the steps: their tokens_per_second in telemetry.jsonl is no speed of training"
    assert note in read_manifest(tmp_path / "run" / "training_manifest.json").notes
    straight = read_manifest(home / "straight" / "training_manifest.json").notes
    assert not any("compiling" in line for line in straight)


def test_learning_rates_are_the_schedule_s_by_number(home: Path, tmp_path: Path, noted: list[tuple[int, float]]) -> None:
    """Also after a resume."""
    trained(home, tmp_path / "run", channel=Deaf(cancel_at=4))
    trained(home, tmp_path / "run")
    rates = toy_run.run_of(home).learning_rates
    np.testing.assert_array_equal([rate for _, rate in noted], rates)
    assert [number for number, _ in noted] == list(range(STEPS))
