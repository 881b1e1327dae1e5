"""`finetune merge-qlora`, `merge-weights` and `convert`, as a user calls them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from contract import cli
from contract.artifacts import peft, training_checkpoint, v2, v3
from contract.artifacts.adapter import Adapter, Quant
from tests.contract.artifacts.adapter_cases import LINEARS, LLAMA, adapter_on, checkpoint_of, content, llama_tensors, write_base


def adapter(**facts: object) -> Adapter:
    nf4 = Quant(base_quant="nf4", double_quant=True)
    return adapter_on(LLAMA, LINEARS, **({"method": "qlora", "quant": nf4, "embed_key": "model.embed_tokens.weight"} | facts))


def finetune(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", llama_tensors(), LLAMA)


def test_every_format_of_one_adapter_merges_to_the_same_weights(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v2.write(tmp_path / "v2", adapter())
    v3.write(tmp_path / "v3", adapter())
    peft.write(tmp_path / "peft", adapter())
    training_checkpoint.write(tmp_path / "checkpoint", checkpoint_of(adapter()))
    for name in ("v2", "v3", "peft"):
        assert finetune("merge-qlora", tmp_path / name, base, tmp_path / f"merged_{name}") == 0
    assert finetune("merge-qlora", tmp_path / "v3" / v3.MANIFEST, base, tmp_path / "merged_twice") == 0
    assert finetune("merge-weights", tmp_path / "checkpoint", base, tmp_path / "merged_checkpoint") == 0
    merged = {name: content(tmp_path / f"merged_{name}") for name in ("v2", "v3", "peft", "twice", "checkpoint")}
    assert merged["v2"] == merged["v3"] == merged["twice"] == merged["checkpoint"]
    assert all(files["model.safetensors"] == merged["v2"]["model.safetensors"] for files in merged.values())
    said = capsys.readouterr().out
    assert "NF4 values" in said
    assert "left out: optimiser state" in said


def test_each_merge_command_refuses_the_other_s_format_and_names_it(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seed: the merge commands go by the file's format, not by the stack that wrote it."""
    training_checkpoint.write(tmp_path / "checkpoint", checkpoint_of(adapter()))
    out = tmp_path / "out"
    assert finetune("merge-qlora", tmp_path / "checkpoint", base, out) == 2
    assert f"run: finetune merge-weights {tmp_path / 'checkpoint'} {base} {out}" in capsys.readouterr().err
    for name, write in (("v2", v2.write), ("v3", v3.write), ("peft", peft.write)):
        write(tmp_path / name, adapter())
        assert finetune("merge-weights", tmp_path / name, base, out) == 2
        assert f"run: finetune merge-qlora {tmp_path / name} {base} {out}" in capsys.readouterr().err
    for command in ("merge-qlora", "merge-weights"):
        assert finetune(command, base, base, out) == 2
        assert "a base model" in capsys.readouterr().err
    assert not out.exists()


def test_an_adapter_of_the_proxy_graph_claims_no_fidelity_aloud(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v3.write(tmp_path / "a", adapter(graph="qlora_proxy_v1"))
    assert finetune("merge-qlora", tmp_path / "a", base, tmp_path / "out") == 0
    assert "no full attention fidelity" in capsys.readouterr().out


def test_refusals_are_lines_on_standard_error_and_exit_2(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v3.write(tmp_path / "a", adapter())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for arguments in (
        ("merge-qlora", tmp_path / "none", base, tmp_path / "out"),
        ("merge-qlora", tmp_path / "a", tmp_path / "none", tmp_path / "out"),
        ("merge-qlora", tmp_path / "a", base, tmp_path / "full"),
        ("merge-qlora", tmp_path / "a", base, tmp_path / "full", "--force"),
        ("merge-qlora", tmp_path / "a", base, base, "--force"),
        ("convert", tmp_path / "a", tmp_path / "full", "--to", "peft"),
        ("convert", tmp_path / "a", tmp_path / "a", "--to", "peft", "--force"),
        ("convert", base, tmp_path / "out", "--to", "v2"),
        ("convert", tmp_path / "a", tmp_path / "out", "--to", "v4"),
    ):
        assert finetune(*arguments) == 2, arguments
        assert capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "full"]


def test_convert_says_what_is_left_out(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v3.write(tmp_path / "a", adapter())
    assert finetune("convert", tmp_path / "a", tmp_path / "b", "--to", "peft") == 0
    said = capsys.readouterr().out
    assert "a v3 adapter as peft, 2 linears" in said
    for field in ("quant", "embed_key", "vocab", "d_model", "graph"):
        assert f"left out: {field}" in said
    assert finetune("convert", tmp_path / "b", tmp_path / "c", "--to", "v2", "--base", base) == 0
    assert "left out" not in capsys.readouterr().out
    assert v2.read(tmp_path / "c").matrices.keys() == adapter().matrices.keys()
    training_checkpoint.write(tmp_path / "checkpoint", checkpoint_of(adapter()))
    assert finetune("convert", tmp_path / "checkpoint", tmp_path / "d", "--to", "v3") == 0
    assert v3.read(tmp_path / "d") == adapter()
    assert finetune("convert", tmp_path / "b", tmp_path / "d", "--to", "peft", "--force") == 0
    assert not (tmp_path / "d" / v3.MANIFEST).exists()


def test_control_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A process of its own, interrupted while it writes; and the next one finds nothing in its way."""
    config = dict(LLAMA) | {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "head_dim": 64}
    shape = (2048, 1024)
    tensors = {f"model.layers.{layer}.mlp.gate_proj.weight": np.ones(shape, np.float32) for layer in range(2)}
    tensors |= {f"model.layers.9.mlp.extra{number}.weight": np.ones(shape, np.float32) for number in range(8)}
    folder = write_base(tmp_path / "base", tensors, config)
    v3.write(tmp_path / "a", adapter_on(config, ("layers.0.gate_proj", "layers.1.gate_proj"), rank=256))
    command = [
        sys.executable,
        "-c",
        "from contract.cli import main; main()",
        "merge-qlora",
        str(tmp_path / "a"),
        str(folder),
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*/built/*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]
