"""`parity mutants` on a stack in NumPy whose product mutants change: the real processes, from the flags to the reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest

from parity import cli
from parity.mutants import campaign
from parity.mutants.catalogue import read
from parity.mutants.verdicts import Verdict
from tests.parity.mutants.askables import FIND, MODULE
from tests.parity.numpy_stack import configure

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "parity" / "mutants" / "planted_stack.py"
SCHEMA = ROOT / "docs" / "mutants.schema.json"
REPLACED = {
    "killed": "return -(a @ b)",
    "survived": "return (a @ b)",
    "raises": "raise ArithmeticError",
    "dies": "import os; os._exit(7)",
    "dies-at-once": "return a @ b\\n\\n\\nraise RuntimeError",
    "hangs": "import time; time.sleep(600)",
    "stale": "return a @",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the stack and a file of mutants."""
    configure(tmp_path, planted=[sys.executable, str(WORKER)])
    same = f'stack = "planted"\nwhat = "a product"\ncheck = "a.matmul"\nmodule = "{MODULE}"\nfind = "{FIND}"\n'
    tables = [f'[{name}]\n{same}replace = "{replace}"\n' for name, replace in REPLACED.items()]
    (tmp_path / "m.toml").write_text("\n".join(tables))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*names: str, jobs: int = 1, until: str = "own") -> list[str]:
    only = ",".join(f"m.toml#{name}" for name in names)
    return ["mutants", "--only", only, "--until", until, "--jobs", str(jobs), "--state", "asked.jsonl", "--json", "out.json"]


def parity(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["parity", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    told = capsys.readouterr()
    return stopped.value.code, told.out, told.err


def test_a_mutant_is_killed_and_reported(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = parity(capsys, monkeypatch, *command("killed"), "--html", "out.html")
    assert (code, err) == (0, "")
    assert "ALL KILLED  1 killed, 0 survived" in out
    record = json.loads((folder / "out.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    (one,) = record["mutants"]
    assert (one["killed_by"], one["first_tap"], one["verdict"]) == ("a.matmul", "y", "killed")
    assert one["examples"] > 0
    assert "m.toml#killed" in (folder / "out.html").read_text()
    again, told, _ = parity(capsys, monkeypatch, *command("killed"))
    assert again == 0
    assert "ALL KILLED" in told
    assert len((folder / "asked.jsonl").read_text().splitlines()) == 2, "what is known was asked again"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "typo"), "there is no mutant 'typo'"),
        (("--only", "m.toml#typo"), "holds no mutant 'typo'"),
        (("--only", "none.toml#x"), "can't be read"),
        (("--tier", "Z"), "there is no tier 'Z'; allowed: A, B, C, D, E"),
        (("--only", "m.toml#killed", "--tier", "B"), "none of the mutants that are named has a check of the tiers B"),
        (("--until", "dawn"), "--until is 'dawn'; allowed: own, killed, every"),
        (("--profile", "slow"), "there is no profile 'slow'"),
        (("--json", "x", "--html", "x"), "x is named for two reports"),
        (("--only", "m.toml#killed", "--state", "m.toml/x"), "can't be written"),
    ],
)
def test_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = parity(capsys, monkeypatch, "mutants", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.nightly
def test_each_verdict_comes_of_real_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = campaign.Settings(state=Path("asked.jsonl"), until="own", jobs=4)
    names = [name for name in REPLACED if name != "hangs"]
    outcomes = {one.mutant.name: one for one in campaign.ask([read(f"m.toml#{name}") for name in names], settings)}
    assert {name: outcomes[f"m.toml#{name}"].verdict for name in names} == {
        "killed": Verdict.KILLED, "survived": Verdict.SURVIVED, "raises": Verdict.CRASHED, "dies": Verdict.CRASHED,
        "dies-at-once": Verdict.CRASHED, "stale": Verdict.STALE,
    }  # fmt: skip
    hanging = campaign.Settings(state=Path("asked.jsonl"), until="own", deadline=lambda clean: 5.0)
    (outcome,) = campaign.ask([read("m.toml#hangs")], hanging)
    assert outcome.verdict is Verdict.HUNG


@pytest.mark.nightly
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_campaign_that_was_broken_off_goes_on(folder: Path, number: signal.Signals, code: int) -> None:
    """While one mutant hangs, after another was asked; nothing that it started is left, and what it knows is not asked again."""
    entry, environment = str(Path(sys.executable).with_name("parity")), {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([entry, *command("killed", "hangs", jobs=2)], stderr=subprocess.PIPE, text=True, env=environment)
    state = folder / "asked.jsonl"
    while not state.exists() or '"mutant":"m.toml#killed"' not in state.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert "interrupted; what was asked is kept in asked.jsonl, and the same command goes on from there" in told
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left
    known = state.read_text()
    done = subprocess.run([entry, *command("killed")], capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0
    assert state.read_text() == known
