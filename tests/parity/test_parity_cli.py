"""The `parity` command as a user meets it: options, exit codes, one line for what went wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import typer.main

from parity import cli, rerunning, session
from parity.checks import registry
from parity.commands.options import failures_folder
from tests.parity.numpy_stack import CAPABILITIES, configure

SCHEMA = Path(__file__).parents[2] / "docs" / "run.schema.json"
STACKS = ("--stacks", "one,two", "--profile", "quick")

WAIVER = '[[waiver]]\ncheck = "a.matmul"\nstack = "two"\nreason = "issue 17"\nowner = "ada"\nexpires = 2999-01-01\n'

OPTIONS = {
    "run": {
        "--tier", "--only", "--stacks", "--device", "--profile", "--seed", "--time-budget", "--mutant", "--model", "--jobs", "--json",
        "--junit", "--reproducers", "--contract", "--preset", "--set", "--allow-uncovered", "--waivers", "--rerun-failed",
        "--from", "--help",
    },
    "replay": {"--stacks", "--device", "--model", "--no-mutants", "--help"},
    "explain": {"--help"},
    "bisect": {"--question", "--stacks", "--device", "--profile", "--seed", "--mutant", "--model", "--help"},
    "capture": {"--stack", "--out", "--tier", "--only", "--device", "--profile", "--seed", "--mutant", "--model", "--help"},
    "compare": {"--json", "--junit", "--help"},
    "compare-env": {
        "--stack", "--tier", "--only", "--device", "--profile", "--seed", "--mutant", "--model", "--json", "--help",
    },
    "doctor": {"--help"},
    "mutants": {
        "--only", "--tier", "--jobs", "--profile", "--sample", "--until", "--json", "--html", "--state", "--fresh", "--help",
    },
    "mutate": {"--count", "--seed", "--jobs", "--profile", "--check", "--only", "--json", "--state", "--fresh", "--help"},
    "coverage": {"--write", "--help"},
    "promote": {"--rule", "--promotions", "--json", "--junit", "--markdown", "--help"},
    "scorecard": {"--help"},
}  # fmt: skip
"""Frozen: a change of this list is a change of the interface, and belongs into CHANGELOG.md."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder whose parity.toml adds stacks in NumPy, and one whose package is not installed."""
    configure(tmp_path, one=[], two=[], absent=[])
    text = (tmp_path / "parity.toml").read_text()
    head, _, tail = text.rpartition("capabilities.json")
    (tmp_path / "parity.toml").write_text(f"{head}absent.json{tail}")
    (tmp_path / "absent.json").write_text(CAPABILITIES.model_copy(update={"packages": ("frobnicate",)}).model_dump_json())
    return tmp_path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: object
    stdout: str
    stderr: str


Parity = Callable[..., Done]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """The command in this process: (working folder, *arguments)."""

    def run(folder: Path, *arguments: str) -> Done:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("parity.commands.run.failures_folder", lambda given: failures_folder(given or folder / "cache" / "failures"))
        monkeypatch.setattr(sys, "argv", ["parity", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return Done(stopped.value.code, told.out, told.err)

    return run


def test_options_are_frozen() -> None:
    group = typer.main.get_command(cli.app)
    commands = group.commands  # type: ignore[attr-defined]
    context = typer.Context(group)
    got = {
        name: {option for parameter in command.get_params(context) for option in parameter.opts if option.startswith("--")}
        for name, command in commands.items()
    }
    assert got == OPTIONS


def test_a_green_run_writes_its_reports(parity: Parity, folder: Path) -> None:
    done = parity(folder, "run", "--only", "a.matmul", "--only", "a.exp", *STACKS, "--json", "run.json", "--junit", "run.xml")
    assert done.code == 0, done.stderr
    assert "PASS" in done.stdout
    record = json.loads((folder / "run.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["exit_code"] == 0
    assert record["profile"] == "quick"
    root = ElementTree.parse(folder / "run.xml").getroot()
    assert len(list(root.iter("testcase"))) == len(record["results"])


def test_the_installed_command(folder: Path) -> None:
    """As a shell meets it: standard output holds the table alone, and no escape codes where it is no terminal."""
    command = [str(Path(sys.executable).with_name("parity")), "run", "--only", "a.matmul", *STACKS, "--device", "two=NAN"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stdout.startswith("verdict")
    assert "\x1b" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_divergence_is_exit_1_and_its_reports_are_written(parity: Parity, folder: Path) -> None:
    done = parity(
        folder, "run", "--only", "a.matmul", *STACKS, "--device", "two=NEGATED", "--json", "run.json", "--junit", "run.xml", "--seed", "3"
    )  # fmt: skip
    assert done.code == 1
    assert "RED" in done.stdout
    assert "again: parity run --only a.matmul" in done.stdout
    record = json.loads((folder / "run.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert (record["exit_code"], record["seed"]) == (1, 3)
    assert len(list(ElementTree.parse(folder / "run.xml").getroot().iter("failure"))) == 3, (
        "each dtype of two against the reference, and two against one"
    )


@pytest.mark.parametrize(("device", "code"), [("NAN", 1), ("INF", 1), ("MISSING", 3), ("DIES", 3), ("ABSENT", 4), ("UNFIT", 5)])
@pytest.mark.timeout(100)
def test_exit_codes(parity: Parity, folder: Path, device: str, code: int) -> None:
    done = parity(
        folder, "run", "--only", "a.matmul", *STACKS, "--device", f"two={device}", "--json", "run.json", "--junit", "run.xml"
    )  # fmt: skip
    assert done.code == code, done.stderr
    assert "Traceback" not in done.stderr
    if code < 4:
        jsonschema.validate(json.loads((folder / "run.json").read_text()), json.loads(SCHEMA.read_text(encoding="utf-8")))
        ElementTree.parse(folder / "run.xml")
    else:
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (folder / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tier", "Z"), "there is no tier 'Z'; allowed: A, B"),
        (("--tier", "a"), "there is no tier 'a'"),
        (("--only", "a.nothing"), "there is no check 'a.nothing'"),
        (("--stacks", "one,three"), "there is no stack 'three'"),
        (("--device", "three=CPU"), "there is no stack 'three'"),
        (("--device", "one=ABACUS"), "stack one has no device 'ABACUS'"),
        (("--device", "one"), "--device is 'one', must be STACK=DEVICE"),
        (("--device", "=CPU"), "--device is '=CPU', must be STACK=DEVICE"),
        (("--profile", "thorough"), "there is no profile 'thorough'; allowed: quick, ci, nightly"),
        (("--mutant", "no-such-bug", "--stacks", "one"), "there is no mutant 'no-such-bug'"),
    ],
)
def test_an_unknown_name_is_usage(parity: Parity, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    one_line(parity(folder, "run", *arguments), 2, message)


def one_line(done: Done, code: int, message: str) -> None:
    assert done.code == code, (done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("parity: ")
    assert message in line
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("--seed", "-1"), ("--seed", "x"), ("--time-budget", "-1"), ("--colour",), ("more",)], ids=lambda words: " ".join(words)
)
def test_a_value_that_is_none_is_usage(parity: Parity, folder: Path, arguments: tuple[str, ...]) -> None:
    done = parity(folder, "run", *arguments)
    assert done.code == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_known_stack_that_is_not_installed_is_exit_4(parity: Parity, folder: Path) -> None:
    one_line(parity(folder, "run", "--stacks", "one,absent"), 4, "stack absent needs frobnicate, not installed here; run: pip install")


def test_a_spent_budget_is_exit_4(parity: Parity, folder: Path) -> None:
    done = parity(folder, "run", "--only", "a.matmul", *STACKS, "--time-budget", "0")
    assert done.code == 4
    assert "time budget" in done.stdout


@pytest.mark.parametrize("option", ["--json", "--junit"])
@pytest.mark.parametrize("path", ["nowhere/run.out", "here", "parity.toml/run.out", "/proc/run.out"])
def test_a_report_that_can_not_be_written_is_told_before_anything_runs(parity: Parity, folder: Path, option: str, path: str) -> None:
    """No folder, the path is a folder, its folder is a file, nobody may write there."""
    (folder / "here").mkdir()
    started = folder / "started"
    (folder / "worker.py").write_text(f"open({str(started)!r}, 'w'); raise SystemExit(1)")
    configure(folder, one=[sys.executable, str(folder / "worker.py")])
    one_line(parity(folder, "run", "--stacks", "one", option, path), 2, path)
    assert not started.exists()


@pytest.mark.parametrize("text", ["[stacks.x]\ncommand = 3\n", "no toml", "stacks = 1\n"])
def test_a_parity_toml_that_is_not_sound_is_usage(parity: Parity, tmp_path: Path, text: str) -> None:
    (tmp_path / "parity.toml").write_text(text)
    one_line(parity(tmp_path, "run"), 2, "parity.toml")


def test_waivers_toml_of_the_current_folder_is_read(parity: Parity, folder: Path) -> None:
    (folder / "waivers.toml").write_text("[[waiver]]\ncheck = 'a.matmul'\n")
    one_line(parity(folder, "run", *STACKS), 2, "waivers.toml")
    (folder / "waivers.toml").write_text(WAIVER)
    done = parity(folder, "run", "--only", "a.matmul", *STACKS, "--device", "two=NEGATED")
    assert done.code == 0
    assert "waived" in done.stdout
    assert "issue 17" in done.stdout


def test_a_waiver_file_of_another_name(parity: Parity, folder: Path) -> None:
    (folder / "waivers.toml").write_text("no toml")
    (folder / "mine.toml").write_text(WAIVER)
    done = parity(folder, "run", "--only", "a.matmul", *STACKS, "--device", "two=NEGATED", "--waivers", "mine.toml")
    assert done.code == 0, done.stderr
    assert "issue 17 (ada, until 2999-01-01)" in done.stdout


def test_rerun_failed_asks_the_red_cells_of_the_last_run(parity: Parity, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerunning, "cache_folder", lambda: folder / "cache")
    one_line(parity(folder, "run", "--rerun-failed"), 2, "no run of this folder is kept")
    green = parity(folder, "run", "--only", "a.matmul", *STACKS, "--json", "green.json")
    assert green.code == 0
    one_line(parity(folder, "run", "--rerun-failed"), 4, "there is nothing to ask again")
    red = parity(folder, "run", "--only", "a.matmul", *STACKS, "--device", "two=NEGATED", "--seed", "3")
    assert red.code == 1
    one_line(parity(folder, "run", "--rerun-failed", "--seed", "4"), 2, "--rerun-failed has --seed from the run that it asks again")
    again = parity(folder, "run", "--rerun-failed", "--json", "again.json")
    assert again.code == 1
    assert "3 cells of the run of" in again.stdout
    record = json.loads((folder / "again.json").read_text())
    assert (record["seed"], len(record["results"])) == (3, 3)
    one_line(parity(folder, "run", "--rerun-failed", "--from", "green.json"), 4, "there is nothing to ask again")


def test_a_cuda_device_that_is_not_here_is_exit_4(parity: Parity, tmp_path: Path) -> None:
    if Path("/dev/nvidia0").exists():
        done = parity(
            tmp_path, "run", "--only", "a.matmul", "--profile", "quick", "--stacks", "torch_qlora", "--device", "torch_qlora=METAL"
        )
        one_line(done, 2, "stack torch_qlora has no device 'METAL'")
        return
    done = parity(tmp_path, "run", "--only", "a.matmul", "--profile", "quick", "--stacks", "torch_qlora", "--device", "torch_qlora=CUDA")
    one_line(done, 4, "torch_qlora on CUDA")


def test_help_needs_nothing_heavy(tmp_path: Path) -> None:
    """So that it answers at once: no framework, no NumPy, no hypothesis."""
    script = (
        "import sys\nfrom parity import cli\ntry:\n    cli.app(['run', '--help'])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'numpy', 'hypothesis', 'scipy', 'torch', 'tinygrad', 'safetensors', 'mpmath', 'ml_dtypes'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exit codes: 0 pass; 1 divergence; 2 usage" in done.stdout


def test_interrupting_is_130(parity: Parity, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", interrupted)
    done = parity(folder, "run", "--json", "run.json")
    assert done.code == 130
    assert done.stderr.strip().splitlines()[-1] == "parity: interrupted; no report was written"
    assert not (folder / "run.json").exists()


def test_coverage_prints_every_cell_of_the_project(parity: Parity, tmp_path: Path) -> None:
    done = parity(tmp_path, "coverage")
    assert done.code == 0, done.stderr
    assert all(check.id in done.stdout for check in registry.CHECKS)


def test_coverage_that_differs_is_exit_4(parity: Parity, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that coverage.json does not have; the stacks of the folder's parity.toml are none of its business."""
    assert parity(folder, "coverage").code == 0
    renamed = dataclasses.replace(registry.CHECKS[0], id="a.new")
    monkeypatch.setattr(registry, "CHECKS", (renamed, *registry.CHECKS))
    done = parity(folder, "coverage")
    assert done.code == 4
    assert "parity coverage --write" in done.stderr
