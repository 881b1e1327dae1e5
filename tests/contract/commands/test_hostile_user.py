"""What a command says when the user, or who wrote the user's files, means no good: a message that can be acted on, nothing half done."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contract import cli
from contract.artifacts import peft, training_checkpoint, v3
from contract.artifacts.adapter import Adapter
from contract.model import zoo
from tests.contract.artifacts.adapter_cases import LLAMA, adapter_on, checkpoint_of, content, llama_tensors, write_base

CONTRACT = "model: {hf_repo: nowhere}\ndata: {train_file: t.jsonl}\n"


def finetune(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run.yaml").write_text(CONTRACT)
    return tmp_path


def on_llama() -> Adapter:
    return adapter_on(LLAMA, ("layers.0.q_proj",), embed_key="model.embed_tokens.weight")


@pytest.mark.parametrize("name", ["plain", "two words", "$(touch pwned)", "it's", "-x"])
def test_the_command_that_a_refusal_names_can_be_pasted(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = f"{name} in", f"{name} out"
    training_checkpoint.write(folder / source, checkpoint_of(adapter_on(LLAMA, ("layers.0.q_proj",))))
    write_base(folder / "base", llama_tensors(), LLAMA)
    assert finetune("merge-qlora", "--force", "--", source, "base", output) == 2
    named = shlex.split(capsys.readouterr().err.rpartition("run: ")[2])
    assert named[:3] == ["finetune", "merge-weights", "--force"]
    assert finetune(*named[1:]) == 0
    assert (folder / output / "merge_manifest.json").is_file()


def test_an_output_that_may_be_replaced_says_how(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v3.write(folder / "a", on_llama())
    write_base(folder / "base", llama_tensors(), LLAMA)
    assert finetune("merge-qlora", "a", "base", "out") == 0
    before = content(folder / "out")
    assert finetune("merge-qlora", "a", "base", "out") == 2
    assert "got a merged model; allowed: a folder that is new or empty; give one, or --force to replace this" in capsys.readouterr().err
    assert finetune("merge-qlora", "a", "base", "a") == 2
    assert finetune("convert", "a", "out", "--to", "peft") == 2
    assert "--force" not in capsys.readouterr().err
    assert content(folder / "out") == before


def test_an_adapter_that_peft_saved_with_its_head_says_how_to_save_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT saves `lm_head.base_layer.weight` along where the head has LoRA, unless save_embedding_layers is False."""
    peft.write(folder / "a", on_llama())
    tensors = load_file(folder / "a" / peft.TENSORS)
    save_file(tensors | {"base_model.model.lm_head.base_layer.weight": np.ones((4, 2), np.float32)}, folder / "a" / peft.TENSORS)
    assert finetune("merge-qlora", "a", "base", "out") == 2
    assert "save_embedding_layers=False" in capsys.readouterr().err
    save_file(tensors | {"base_model.model.lm_head.lora_C.weight": np.ones((4, 2), np.float32)}, folder / "a" / peft.TENSORS)
    assert finetune("merge-qlora", "a", "base", "out") == 2
    assert "export it as plain LoRA on linears" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 100)])
def test_a_damaged_adapter_is_not_to_be_downloaded(
    folder: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    v3.write(folder / "a", on_llama())
    damage(folder / "a" / "candle_qlora_adapter.safetensors")
    assert finetune("merge-qlora", "a", "base", "out") == 2
    assert "write the adapter again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x\x1b[31m.yaml", "x\ny.yaml", "x\udcff.yaml"])
def test_no_path_writes_to_the_terminal_by_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("digest", name) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error[:-1].isprintable()


def test_a_path_out_of_a_contract_does_not_either(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.json").write_text(json.dumps({"model": {"hf_repo": "n"}, "data": {"train_file": "\x9b31m\u2028finetune: done"}}))
    assert finetune("digest", "run.json", "--inputs") == 0
    error = capsys.readouterr().err
    assert all(line.isprintable() and line.startswith("finetune: not hashed: ") for line in error.splitlines())
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("key", ["[key]", "adapter.[key]", "adapter.rank_pattern.[key]"])
def test_a_key_with_the_name_of_pydantic_s_mark(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("digest", "run.yaml", "--set", f"{key}=1") == 2
    error = capsys.readouterr().err
    assert "an unknown field" in error or "has no fields of its own" in error
    assert "[key]" in error


def test_a_library_that_hides_an_interrupt_is_interrupted_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NumPy, interrupted while it loads, raises an ImportError."""

    def fetch(name: str, **options: object) -> zoo.Fetched:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy._core.umath failed to import") from None
        raise AssertionError

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(zoo, "fetch", fetch)
    assert finetune("fetch", "smollm2-135m") == 130
    assert capsys.readouterr().err == "finetune: interrupted; the same command starts it again\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_before_a_command_begins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "app", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert finetune("fetch", "smollm2-135m") == 130
    assert capsys.readouterr().err == "finetune: interrupted; the same command starts it again\n"


def test_an_error_without_an_interrupt_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **options: object) -> zoo.Fetched:
        raise ImportError("no such library")

    monkeypatch.setattr(zoo, "fetch", fetch)
    monkeypatch.setattr(sys, "argv", ["finetune", "fetch", "smollm2-135m"])
    with pytest.raises(ImportError, match="no such library"):
        cli.main()


def test_a_full_disk_names_the_output_and_leaves_nothing(folder: Path) -> None:
    """In a process of its own, whose files may have a few bytes only."""
    v3.write(folder / "a", on_llama())
    write_base(folder / "base", llama_tensors(), LLAMA)
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)); from contract.cli import main; main()"
    arguments = [sys.executable, "-B", "-c", code, "merge-qlora", "a", "base", "out"]
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert done.returncode == 1
    assert done.stderr == f"finetune: {folder / 'out'}: File too large; check its folder, rights and space\n"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "base", "run.yaml"]
