"""`finetune digest`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from contract import cli
from contract.run import content
from contract.run.digest import digest, parity_digest
from contract.run.source import read_contract

TEXT = "model: {config_json: c.json, weight_shards: [w.safetensors]}\ndata: {train_file: t.jsonl}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "RACY_NS", 0)
    (tmp_path / "run.yaml").write_text(TEXT)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["finetune", "digest", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_both_digests(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    contract = read_contract(Path("run.yaml"), preset="cpu", overrides=["adapter.rank=8"])
    assert run(monkeypatch, "run.yaml", "--preset", "cpu", "--set", "adapter.rank=8") == 0
    assert capsys.readouterr() == (f"digest         {digest(contract)}\nparity digest  {parity_digest(contract)}\n", "")


def test_without_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["model.config_json=c.json", "model.weight_shards=[w.safetensors]", "data.train_file=t.jsonl"]
    assert run(monkeypatch, "--json", *(part for flag in flags for part in ("--set", flag))) == 0
    contract = read_contract(Path("run.yaml"))
    assert json.loads(capsys.readouterr().out) == {"digest": digest(contract), "parity_digest": parity_digest(contract)}


def test_the_inputs_that_are_here(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("c.json", "w.safetensors"):
        (folder / name).write_text(name)
    expected = {"model.config_json": "c.json", "model.weight_shards/w.safetensors": "w.safetensors"}
    hashes = {role: hashlib.sha256(name.encode()).hexdigest() for role, name in expected.items()}
    for _ in range(2):  # hashed, then remembered
        assert run(monkeypatch, "run.yaml", "--inputs", "--json") == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["inputs"] == hashes
        assert captured.err.startswith("finetune: not hashed: data.train_file: got t.jsonl, which is no file")
    assert run(monkeypatch, "run.yaml", "--inputs") == 0
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {role: lines[role] for role in hashes} == hashes


def test_a_faulty_contract_is_refused_in_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "run.yaml", "--set", "adapter.rank=0", "--set", "exec.epochs=0") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(": got")[0] for line in captured.err.splitlines()] == [
        "finetune: --set: adapter.rank",
        "finetune: --set: exec.epochs",
    ]
