"""`finetune train` with the toy stack in a worker of its own: what is printed, what is left, and the exit code."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.artifacts.manifest import read_manifest
from contract.training import checkpoints
from tests.contract.training import toy_run
from tests.contract.training.toy_run import finetune, outputs

COMMAND = (sys.executable, "-c", "from contract.cli import main; main()")
DEADLINE = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a run, and the folder `straight` that it left."""
    folder = toy_run.make(tmp_path_factory.mktemp("toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        assert finetune("train", "run.json", "--out", "straight") == 0
    return folder


@pytest.fixture(autouse=True)
def _there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.chdir(home)


@pytest.fixture
def straight(home: Path, tmp_path: Path) -> Path:
    """A copy of the run that was trained without a break."""
    shutil.copytree(home / "straight", tmp_path / "copy")
    return tmp_path / "copy"


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error, where notes and steps stand before it; nothing there is a traceback."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_a_run_leaves_what_the_page_says(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert finetune("train", "run.json", "--out", out, "--set", "exec.max_steps=4") == 0
    shown = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert lines["done"] == "4 steps"
    assert lines["adapter"] == str(out / "adapter")
    assert [part.split()[-1] for part in lines["validation"].split(", ")] == ["0", "4"]
    assert "finetune: note: the toy's own choice" in shown.err
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "checkpoints", "peft", "telemetry.jsonl", "training_manifest.json"]
    manifest = read_manifest(out / "training_manifest.json")
    assert (manifest.execution_kernel, manifest.device, manifest.threads) == ("toy", "CPU", 1)
    assert {"twostack", "numpy", "tokenizers", "python"} <= manifest.packages.keys()
    assert manifest.outputs.keys() == outputs(out).keys()
    assert set(manifest.data) == {"data.train_file", "model.config_json", "model.tokenizer_json"}


def test_a_folder_that_holds_something_is_refused(home: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outputs(straight)
    assert finetune("train", "run.json", "--out", straight) == 2
    assert "got a folder that holds a run already" in (line := only_line(capsys))
    assert "add --resume to go on with it" in line
    assert outputs(straight) == before
    assert finetune("train", "run.json", "--out", home / "model") == 2
    assert "got a folder that holds something else" in only_line(capsys)
    assert finetune("train", "run.json", "--out", home / "run.json") == 2
    assert "got a file; allowed: a folder that is new or empty" in only_line(capsys)
    assert finetune("train", "--out", tmp_path / "new", "--resume") == 2
    assert "got no run; allowed: the folder of one, since no contract is given" in only_line(capsys)


def test_what_can_t_be_written_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("train", "run.json", "--out", "/proc/nothing/out") == 1
    assert only_line(capsys).startswith("finetune: /proc/nothing")


def test_a_folder_that_is_read_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "out" / "tmpabc"))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    assert finetune("train", "run.json", "--out", tmp_path / "out") == 1
    assert only_line(capsys) == f"finetune: {tmp_path / 'out'}: Read-only file system; check its folder, rights and space"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/nowhere/python"], "toy: could not start /nowhere/python: No such file or directory; check its command"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "toy: the worker ended with exit code 3"),
    ],
)
def test_a_worker_that_does_not_come_up_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], words: str
) -> None:
    toy_run.make(tmp_path / "other")
    configured = tmp_path / "other" / "parity.toml"
    configured.write_text(f'[stacks.toy]\ncommand = {json.dumps(command)}\ncapabilities = "toy.json"\n')
    os.chdir(tmp_path / "other")
    assert finetune("train", "run.json", "--out", "out") == 1
    assert only_line(capsys).startswith(f"finetune: {words}; there is no checkpoint yet; go on with: finetune train --out ")


def test_what_lies_where_the_adapters_go_is_told_before_the_run_goes_on(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(straight / "peft")
    (straight / "peft").mkdir()
    (straight / "peft" / "notes.txt").write_text("mine")
    before = (straight / "training_manifest.json").read_bytes()
    assert finetune("train", "--out", straight, "--resume") == 2
    assert only_line(capsys) == f"finetune: {straight / 'peft'}: got something else; allowed: an adapter, or nothing; move it elsewhere"
    assert (straight / "training_manifest.json").read_bytes() == before


def test_another_stack_is_refused_by_name(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of one stack is not another's."""
    assert finetune("train", "run.json", "--set", "stack=tinygrad_lora", "--out", straight, "--resume") == 2
    words = "stack: got tinygrad_lora; allowed: toy, on which the run in this folder began; a stack goes on from no other's checkpoint"
    assert words in only_line(capsys)


def test_another_contract_is_refused_by_its_fields_and_both_digests(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("--set", "exec.seed=7", "--set", "exec.resume_from=elsewhere", "--set", "adapter.rank_pattern={q_proj: 2}")
    assert finetune("train", "run.json", *changes, "--out", straight, "--resume") == 2
    line = only_line(capsys)
    assert "contract: got other values of adapter.rank_pattern, exec.seed: the digest " in line
    assert read_manifest(straight / "training_manifest.json").contract_digest in line
    assert len([word for word in line.replace(",", " ").replace(";", " ").split() if len(word) == 64]) == 2
    assert finetune("train", "--set", "exec.seed=7", "--out", straight, "--resume") == 2
    assert "flags that change it: exec.seed=7" in only_line(capsys)


def test_other_rows_are_refused_by_name(home: Path, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = home / "rows.jsonl"
    before = rows.read_bytes()
    try:
        rows.write_bytes(before.replace(b"question 3", b"question 4"))
        assert finetune("train", "--out", straight, "--resume") == 2
        assert "data.train_file" in only_line(capsys)
        assert finetune("train", straight / "training_manifest.json", "--out", straight.parent / "again") == 2
        assert f"{straight / 'training_manifest.json'}: data.train_file: got a file of SHA-256" in only_line(capsys)
    finally:
        rows.write_bytes(before)
    assert not (straight.parent / "again").exists()


def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_offered(
    home: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, worse = checkpoints.of_run(straight)
    for path in (bad, worse):
        tensors = path / "training_checkpoint.safetensors"
        content = bytearray(tensors.read_bytes())
        content[-2] ^= 1
        tensors.write_bytes(content)
    assert finetune("train", "--out", straight, "--resume") == 2
    line = only_line(capsys)
    assert line.startswith(f"finetune: {worse / 'training_checkpoint.safetensors'}: got SHA-256")
    assert line.endswith(f"remove {bad} and {worse}: --resume then goes on from {good}, the last good one")
    shutil.rmtree(bad)
    shutil.rmtree(worse)
    assert finetune("train", "--out", straight, "--resume") == 0
    assert outputs(straight) == outputs(home / "straight")


def test_a_manifest_reproduces_its_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = home / "straight" / "training_manifest.json"
    assert finetune("train", manifest, "--out", tmp_path / "again") == 0
    assert "finetune: note: reproduced bit for bit: all 5 files of the outputs are the same" in capsys.readouterr().err
    assert outputs(tmp_path / "again") == outputs(home / "straight")


@pytest.mark.nightly
def test_other_conditions_and_other_bits_are_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads((home / "straight" / "training_manifest.json").read_text())
    value["packages"] |= {"numpy": "1.0", "gone": "2"}
    value["outputs"]["adapter/candle_qlora_adapter.safetensors"] = "0" * 64
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(value | {"threads": 8}))
    assert finetune("train", changed, "--out", tmp_path / "again") == 0
    error = capsys.readouterr().err
    assert "bits may differ: gone 2, now none; numpy 1.0, now " in error
    assert "threads 8, now 1" in error
    assert "NOT reproduced bit for bit: 1 of 5 files differ, such as adapter/candle_qlora_adapter.safetensors" in error
    for flag in (("--preset", "cpu"), ("--set", "exec.seed=1"), ("--stack", "toy")):
        assert finetune("train", changed, "--out", tmp_path / "third", *flag) == 2
        assert "a manifest reproduces its run as it was" in only_line(capsys)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        pytest.param("NAN3", "the loss of step 3 is nan, in micro-batch 2 of 2: lines", marks=pytest.mark.nightly),
        ("OOM3", "no memory is left in step 3 (could not allocate 12345 bytes); the estimate was"),
        pytest.param(
            "OOMLOAD", "no memory is left while the model is loaded (could not allocate the weights); the", marks=pytest.mark.nightly
        ),
        ("DIE3", "toy: the worker ended with exit code 7"),
        ("UNFIT3", "the compiler of the toy failed on a kernel (no space); free some; the checkpoint"),
    ],
)
def test_a_run_that_fails_says_why_what_is_kept_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, words: str
) -> None:
    out = tmp_path / "out"
    assert finetune("train", "run.json", "--set", f"exec.device={device}", "--out", out) == 1
    line = only_line(capsys)
    assert line.startswith(f"finetune: {words}")
    there = "there is no checkpoint yet" if device == "OOMLOAD" else f"the checkpoint {out / 'checkpoints' / 'step-00000002'} is kept"
    assert there in line
    assert line.endswith(f"finetune train --out {out} --resume")
    if device.startswith("NAN"):  # a step is the same each time
        assert "in a run of its own; this one would end so again: " in line
    if device.startswith("OOM"):
        assert any(words in line for words in ("lower exec.batch_size", "lower adapter.rank", "set quant.base"))


def test_a_defect_of_a_stack_is_shown_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("train", "run.json", "--set", "exec.device=BUG3", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: a defect" in error
    assert "in _go_wrong" in error


def test_a_device_that_is_not_here_is_refused_unless_the_cpu_may_take_its_place(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ("run.json", "--set", "exec.device=cuda", "--out", tmp_path / "out")
    assert finetune("train", *there) == 2
    line = only_line(capsys)
    assert line.startswith("finetune: exec.device: got CUDA, which is not here: the toy finds no CUDA device; install a driver; allowed:")
    assert line.endswith("put that right, set exec.device to CPU, or set exec.allow_cpu_fallback")
    assert finetune("train", *there, "--set", "exec.allow_cpu_fallback=true") == 0
    manifest = read_manifest(tmp_path / "out" / "training_manifest.json")
    assert (manifest.device, manifest.contract.exec.device) == ("CPU", "CUDA")
    assert any("exec.allow_cpu_fallback: the run went on the CPU" in note for note in manifest.notes)
    assert outputs(tmp_path / "out") == outputs(home / "straight")


def test_what_a_stack_lacks_for_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("train", "run.json", "--set", "exec.device=LACKS", "--out", tmp_path / "out") == 2
    assert only_line(capsys) == "finetune: lm_head takes 2 GiB on LACKS; allowed: 1 GiB a tensor; take a smaller model"


def test_a_gate_s_refusal_is_shown_as_plan_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("train", "run.json", "--set", "exec.warmup_steps=16", "--out", tmp_path / "out") == 2
    assert "1. warmup" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stack_that_does_not_train_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_run.make(tmp_path / "other", requests=["probe"])
    os.chdir(tmp_path / "other")
    assert finetune("train", "run.json", "--out", "out") == 2
    assert "got toy, which does not answer the request `train`" in only_line(capsys)


@pytest.fixture
def launched(home: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of slow steps in a process of its own, with its first checkpoint on disk."""
    arguments = ["train", "run.json", "--set", "exec.device=SLOW100", "--out", str(tmp_path / "out")]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + DEADLINE
        while not checkpoints.of_run(tmp_path / "out"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
        process.kill()


def steps_done(folder: Path) -> int:
    return (folder / "telemetry.jsonl").read_bytes().count(b"\n")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_a_signal_finishes_the_step_and_names_the_command_that_goes_on(
    home: Path, tmp_path: Path, launched: subprocess.Popen[str], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    launched.send_signal(number)
    _, error = launched.communicate(timeout=DEADLINE)
    assert launched.returncode == 130
    *_, asked, line = error.splitlines()
    assert asked == "finetune: stopping after this step; Ctrl-C again ends at once"
    step = steps_done(tmp_path / "out")
    assert line.startswith(
        f"finetune: paused after step {step} of 15; the checkpoint {tmp_path / 'out' / 'checkpoints'}/step-{step:08} is kept"
    )
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert finetune(*shlex.split(line.partition("go on with: ")[2])[1:]) == 0
    assert outputs(tmp_path / "out") == outputs(home / "straight")


@pytest.mark.nightly
def test_a_second_one_ends_it_at_once_and_leaves_all_whole(
    home: Path, tmp_path: Path, launched: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    launched.send_signal(signal.SIGINT)
    launched.send_signal(signal.SIGINT)
    time.sleep(0.05)
    launched.send_signal(signal.SIGINT)
    _, error = launched.communicate(timeout=DEADLINE)
    assert launched.returncode == 130
    line = error.splitlines()[-1]
    assert line.startswith("finetune: ended at once; what was saved is whole, and goes on with: finetune train") or "paused after" in line
    assert finetune("train", "--out", tmp_path / "out", "--resume") == 0
    assert outputs(tmp_path / "out") == outputs(home / "straight")


@pytest.mark.nightly
def test_a_worker_whose_launcher_is_killed_saves_and_the_next_run_waits_for_it(
    home: Path, tmp_path: Path, launched: subprocess.Popen[str]
) -> None:
    launched.kill()
    launched.wait()
    assert finetune("train", "--out", tmp_path / "out", "--resume") == 0
    assert outputs(tmp_path / "out") == outputs(home / "straight")
    notes = read_manifest(tmp_path / "out" / "training_manifest.json").notes
    assert any(note.startswith("paused after") for note in notes)
