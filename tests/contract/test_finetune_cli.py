"""The command line of `finetune`: its options are frozen, it starts fast, and errors are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from contract import cli
from contract.errors import EnvironmentUnfit, UserError
from contract.model import zoo

OPTIONS = {
    "fetch": ["MODEL", "--folder", "--revision", "--verify", "--force"],
    "init": ["PATH", "--preset", "--set", "--force"],
    "plan": ["CONTRACT", "--preset", "--set", "--skip-bad-rows", "--json", "--device-memory"],
    "preflight": ["CONTRACT", "--preset", "--set", "--scan", "--labels", "--skip-bad-rows", "--json"],
    "digest": ["CONTRACT", "--preset", "--set", "--inputs", "--skip-bad-rows", "--json"],
    "merge-qlora": ["ADAPTER", "BASE", "OUTPUT", "--force"],
    "merge-weights": ["CHECKPOINT", "BASE", "OUTPUT", "--layout", "--force"],
    "convert": ["SOURCE", "TARGET", "--to", "--base", "--force"],
    "train": ["--out", "CONTRACT", "--preset", "--set", "--skip-bad-rows", "--stack", "--resume"],
    "generate": [
        "--model", "--adapter", "--prompt", "--prompt-file", "--system", "--template", "--tokenizer", "--stack", "--device", "--base",
        "--dtype", "--max-new-tokens", "--temperature", "--top-p", "--seed", "--json",
    ],
}  # fmt: skip

# pydantic is missing here: typer itself loads it to read a command's options (80 ms).
HEAVY = ("gguf", "huggingface_hub", "ml_dtypes", "numpy", "rich", "safetensors", "tokenizers", "torch", "transformers")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_the_option_list_is_frozen() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert {name: [spelling(parameter) for parameter in command.params] for name, command in commands.items()} == OPTIONS


def spelling(parameter: Any) -> str:
    """An argument's metavar, an option's flags."""
    return parameter.metavar if parameter.param_type_name == "argument" else "/".join(parameter.opts + parameter.secondary_opts)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in OPTIONS)])
def test_help_loads_no_heavy_module(arguments: list[str]) -> None:
    code = f"""
import sys
from contract import cli
sys.argv = ["finetune", *{arguments!r}]
try:
    cli.main()
finally:
    loaded = sorted(set({HEAVY!r}) & set(sys.modules))
    assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert arguments[0].removeprefix("--help") in done.stdout


def test_an_unknown_name_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "fetch", "smollm3") == 2
    assert "there is no model 'smollm3'; known: smollm2-135m; a hub id has a slash (OWNER/NAME)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "Missing argument 'MODEL'"),
        (["fetch", "smollm2-135m", "--revision", "main"], "--revision goes with a hub id"),
        (["fetch", "someone/model", "--verify"], "--verify goes with a known name (smollm2-135m)"),
        (["fetch", "smollm2-135m", "--fast"], "No such option: --fast"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_usage_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", [UserError, EnvironmentUnfit])
def test_an_error_of_the_user_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[UserError]
) -> None:
    def fetch(name: str, **options: object) -> zoo.Fetched:
        raise kind("got this, allowed is that, do so")

    monkeypatch.setattr(zoo, "fetch", fetch)
    assert run(monkeypatch, "fetch", "smollm2-135m") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "finetune: got this, allowed is that, do so\n")


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fetch(name: str, **options: object) -> zoo.Fetched:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "fetch", fetch)
    assert run(monkeypatch, "fetch", "smollm2-135m") == 130
    assert capsys.readouterr().err == "finetune: interrupted; the same command starts it again\n"


def test_options_reach_the_fetch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, dict[str, object]]] = []

    def fetch(name: str, *, progress: object, **options: object) -> zoo.Fetched:
        calls.append((name, options))
        return zoo.Fetched(path=Path("there"), download_seconds=1.25, convert_seconds=2.5)

    monkeypatch.setattr(zoo, "fetch", fetch)
    assert run(monkeypatch, "fetch", "a/b", "--folder", "x", "--revision", "v2", "--force") == 0
    assert calls == [("a/b", {"folder": Path("x"), "revision": "v2", "verify": False, "force": True})]
    assert capsys.readouterr().out == "a/b is in there (download 1.2 s, conversion 2.5 s)\n"
