"""`parity scorecard` as a user meets it, on the example that is shipped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main

from parity import cli
from parity.commands import scorecard
from parity.scorecard import event_log
from parity.scorecard.cycle_file import read_cycle
from parity.scorecard.event_log import read_events
from parity.scorecard.report import Report
from tests.parity.scorecard.misbehaving_server import serving, url_of
from tests.parity.scorecard.scorecard_cases import spec_values

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "scorecard"

OPTIONS = {
    "verify": {"--help"},
    "run": {"--out", "--cycle", "--help"},
    "report": {"--rescored", "--json", "--markdown", "--help"},
    "rescore": {"--help"},
    "cycle": {"--gate", "--help"},
    "training": {"--out", "--suite", "--pairs", "--help"},
}
"""Frozen: a change of this list is a change of the interface, and belongs into CHANGELOG.md."""


def parity(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["parity", "scorecard", *map(str, arguments)])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, run."""
    folder = tmp_path_factory.mktemp("example") / "run"
    with pytest.MonkeyPatch.context() as patched:
        assert parity(patched, "run", EXAMPLE / "spec.yaml", "--out", folder, "--cycle", "first") == 0
    return folder


def write(folder: Path, **changed: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec_values(**changed)))
    return path


def test_options_are_frozen() -> None:
    group = typer.main.get_command(scorecard.app)
    commands = group.commands  # type: ignore[attr-defined]
    context = typer.Context(group)
    got = {
        name: {option for parameter in command.get_params(context) for option in parameter.opts if option.startswith("--")}
        for name, command in commands.items()
    }
    assert got == OPTIONS


def test_verify_tells_the_digest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity(monkeypatch, "verify", EXAMPLE / "spec.yaml") == 0
    said = capsys.readouterr().out
    assert "54 tasks in 27 families" in said
    assert said.split("suite.sha256: ")[1].strip() in (EXAMPLE / "spec.yaml").read_text()


def test_a_reference_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = spec_values()["tasks"]
    path = write(
        tmp_path, tasks=[tasks[0] | {"reference": "no"}, tasks[1] | {"expected_contains": [" "], "semantic_expected_contains": []}]
    )
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "answers.jsonl").write_text('{"task": "t0", "text": "x"}\n{"task": "t1", "text": "x"}\n')
    for command in (("verify", path), ("run", path, "--out", tmp_path / "out")):
        assert parity(monkeypatch, *command) == 2
        said = capsys.readouterr().err
        assert "task t0: got a reference that fails" in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_run_is_whole_and_a_second_one_asks_nothing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done / "events.jsonl").read_bytes()
    assert len({event.event_id for event in read_events(done / "events.jsonl")}) == before.count(b"\n")
    assert parity(monkeypatch, "run", EXAMPLE / "spec.yaml", "--out", done, "--cycle", "first") == 0
    assert (done / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize("other", ["cycle", "spec", "answers", "folder"])
def test_another_run_does_not_go_into_its_folder(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "example")
    shutil.copytree(done, tmp_path / "run")
    spec = tmp_path / "example" / "spec.yaml"
    if other == "spec":
        spec.write_text(spec.read_text().replace("max_retries: 2", "max_retries: 1"))
    elif other == "answers":
        with open(tmp_path / "example" / "candidate" / "answers.jsonl", "a") as file:
            file.write('{"task": "more", "text": "more"}\n')
    elif other == "folder":
        (tmp_path / "run" / "manifest.json").unlink()
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    assert parity(monkeypatch, "run", spec, "--out", tmp_path / "run", "--cycle", "second" if other == "cycle" else "first") == 2
    named = {"cycle": "cycle first", "spec": "another spec", "answers": "another answers", "folder": "no scorecard's run"}
    assert named[other] in capsys.readouterr().err
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before


def test_killed_as_it_began_it_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        condition = {"id": "c", "kind": "http_generate", "backend": "b", "server_url": url_of(server), "model": "good"}
        path = write(tmp_path, conditions=[condition], max_retries=0)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "spec.yaml").write_text("half")
        (tmp_path / "out" / ".spec.yaml.7.partial").write_text("half")
        assert parity(monkeypatch, "run", path, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "spec.yaml").read_text() == path.read_text()


def test_report_and_rescore_and_cycle(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = tmp_path / "report.json", tmp_path / "report.md"
    assert parity(monkeypatch, "report", done, "--json", paths[0], "--markdown", paths[1]) == 0
    report = Report.model_validate_json(paths[0].read_text())
    assert [one.condition for one in report.summaries] == ["baseline", "candidate", "control"]
    assert all(one.episodes == 162 and one.unfinished == 0 and len(one.families) == 27 for one in report.summaries)
    assert "| task success |" in paths[1].read_text()
    capsys.readouterr()
    assert parity(monkeypatch, "rescore", done) == 0
    assert "answers judged anew, 0 otherwise than before, 0 left out" in capsys.readouterr().out
    assert (done / "rescored.jsonl").read_bytes().count(b"\n") == (done / "events.jsonl").read_bytes().count(b"\n")
    gate = tmp_path / "gate.json"
    digest = json.loads((EXAMPLE / "candidate" / "training.json").read_text())["parity_digest"]
    gate.write_text(json.dumps({"contract": {"digest": digest}, "exit_code": 0}))
    assert parity(monkeypatch, "cycle", done, "--gate", gate) == 0
    cycle = read_cycle(done)
    assert (cycle.name, cycle.max_attempts, cycle.changed) == ("first", 3, ())
    assert cycle.gate is not None
    assert cycle.gate.digest == cycle.digest
    for lane, summary in zip(cycle.lanes().values(), report.summaries, strict=True):
        assert lane.scores.complete.all()
        assert lane.scores.success.mean() == pytest.approx(summary.task_success, rel=1e-12)  # two orders of one sum of 162 shares
        assert lane.scores.tokens.sum() == summary.tokens_out


def test_the_training_set_is_rows_of_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contract.data import rows

    path = tmp_path / "train.jsonl"
    assert parity(monkeypatch, "training", "--out", path, "--pairs", "2400") == 0
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2400
    assert [remark for number, line in enumerate(lines, 1) for remark in rows.noted(line, number, "train.jsonl")[1]] == []


def test_attempts_that_were_lost_are_exit_4_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        condition = {"id": "c", "kind": "http_generate", "backend": "b", "server_url": url_of(server), "model": "drops-once"}
        path = write(tmp_path, conditions=[condition], seeds=[1], budgets={"infra_retries": 0}, max_retries=0)
        assert parity(monkeypatch, "run", path, "--out", tmp_path / "out") == 4
        captured = capsys.readouterr()
        assert "1 dropped" in captured.out
        assert "1 episodes were lost" in captured.err
        assert parity(monkeypatch, "run", path, "--out", tmp_path / "out") == 0
        assert len(server.requests) == 4


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(event_log.os, "fsync", full)
    with contextlib.ExitStack() as exits:
        server = exits.enter_context(serving())
        monkeypatch.setattr("parity.scorecard.runner_folder.write_record", lambda path, record: path.write_text(record.model_dump_json()))
        monkeypatch.setattr("parity.scorecard.runner_folder.replacing", lambda path: path.open("wb"))
        condition = {"id": "c", "kind": "http_generate", "backend": "b", "server_url": url_of(server), "model": "good"}
        assert parity(monkeypatch, "run", write(tmp_path, conditions=[condition]), "--out", tmp_path / "out") == 5
    said = capsys.readouterr().err.strip()
    assert said == f"parity: {tmp_path / 'out' / 'events.jsonl'}: No space left on device; check its folder, rights and space"
    assert (tmp_path / "out" / "events.jsonl").read_bytes() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.nightly)])
def test_broken_off_in_the_middle_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """The server answers two prompts, and hangs at the third: then the signal comes."""
    with serving() as server:
        condition = {"id": "c", "kind": "http_generate", "backend": "b", "server_url": url_of(server), "model": "good-twice"}
        path = write(tmp_path, conditions=[condition], seeds=[1], budgets={"request_seconds": 60.0}, max_retries=0)
        command = [
            sys.executable,
            "-c",
            "from parity.cli import main; main()",
            "scorecard",
            "run",
            str(path),
            "--out",
            str(tmp_path / "out"),
        ]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while len(server.requests) < 3 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
        assert ("the same command goes on" in said) == (number == signal.SIGINT)
        kept = read_events(tmp_path / "out" / "events.jsonl")
        assert [event.task for event in kept] == ["t0", "t1"]
        server.requests.clear()
        assert parity(monkeypatch, "run", path, "--out", tmp_path / "out") == 0
        assert [request["messages"][0]["content"] for request in server.requests] == ["Say gamma."]
    assert read_events(tmp_path / "out" / "events.jsonl")[:2] == kept


def test_the_example_is_what_its_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.scorecard import make

    monkeypatch.setattr(sys, "argv", ["make.py", "--out", str(tmp_path)])
    make.main()
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.json*")}
    assert len(made) == 6
    assert made == {path.relative_to(EXAMPLE): path.read_bytes() for path in EXAMPLE.rglob("*.json*")}


def test_the_schema_takes_the_example() -> None:
    from ruamel.yaml import YAML

    values = YAML(typ="safe").load(EXAMPLE / "spec.yaml")
    jsonschema.validate(values, json.loads((ROOT / "docs" / "scorecard.schema.json").read_text()))
