"""`finetune init`: what it writes, and that it replaces nothing unasked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract import cli
from contract.run.presets import NAMES
from contract.run.source import read_contract
from contract.run.starter import EXAMPLES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["finetune", "init", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize("preset", [None, *NAMES])
def test_it_reads_back(monkeypatch: pytest.MonkeyPatch, folder: Path, preset: str | None) -> None:
    assert init(monkeypatch, *(["--preset", preset] if preset else [])) == 0
    assert [path.name for path in folder.iterdir()] == ["contract.yaml"]
    assert read_contract(Path("contract.yaml")) == read_contract(None, preset=preset, overrides=EXAMPLES)


def test_flags_are_written_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(monkeypatch, "sub/run.yml", "--set", "model.hf_repo=a/b", "--set", "adapter.rank=8", "--preset", "smoke") == 0
    contract = read_contract(Path("sub/run.yml"))
    assert (contract.model.hf_repo, contract.adapter.rank, contract.exec.seq_len) == ("a/b", 8, 64)
    captured = capsys.readouterr()
    assert (captured.err, "finetune plan sub/run.yml" in captured.out) == ("", True)


def test_a_file_that_is_there_stays(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "contract.yaml").write_text("mine")
    assert init(monkeypatch) == 2
    assert capsys.readouterr().err == (
        "finetune: contract.yaml: got a file that is there; allowed: a new file; give another name, or --force\n"
    )
    assert (folder / "contract.yaml").read_text() == "mine"
    assert init(monkeypatch, "--force") == 0
    assert read_contract(folder / "contract.yaml").model.hf_repo == "smollm2-135m"


def test_a_link_to_nowhere_is_there_too(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "contract.yaml").symlink_to(folder / "elsewhere.yaml")
    assert init(monkeypatch) == 2
    assert not (folder / "elsewhere.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.json"], "run.json: got the suffix '.json'; allowed: .yaml, .yml"),
        (["folder.yaml", "--force"], "folder.yaml: got a folder"),
        (["--preset", "gpu"], "--preset: got 'gpu'; allowed: smoke, cpu"),
        (["--set", "adapter.rank=0"], "--set: adapter.rank: got 0; allowed: greater than or equal to 1"),
        (["--set", "adapter.rank"], "allowed: KEY=VALUE"),
    ],
)
def test_refusals_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "folder.yaml").mkdir()
    assert init(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["folder.yaml"]
