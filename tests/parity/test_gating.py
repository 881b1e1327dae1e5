"""A contract on its way into the gate: what is wrong with it is said on one line, before anything is started, with the right exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.worker import discover, files
from contract.worker.discover import StackInfo
from parity import cli, gating, workers
from parity.options import ContractOptions
from tests.parity import own_run_stack

Parity = Callable[..., tuple[object, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound contract, run.json; no worker is ever started."""
    own_run_stack.write(tmp_path)
    known = own_run_stack.two()

    def never(*about: object) -> None:
        raise AssertionError("nothing is started for a contract that is refused")

    monkeypatch.setattr(discover, "discover", lambda: known)
    monkeypatch.setattr(workers, "sets", never)
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


@pytest.fixture
def parity(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parity:
    """The command in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["parity", "run", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return stopped.value.code, told.out, told.err

    return run


def refused(done: tuple[object, str, str], code: int, *told: str) -> None:
    """One line on standard error, which begins with the program's name."""
    assert done[0] == code, done[2]
    assert done[1] == ""
    assert done[2].startswith("parity: ")
    assert done[2].count("\n") == 1
    for text in told:
        assert text in done[2]


def no_yaml(folder: Path) -> None:
    (folder / "run.json").write_text('{"model": [')


def unknown_field(folder: Path) -> None:
    _change(folder, lambda value: value["exec"].update(learning_speed=1))


def two_faults(folder: Path) -> None:
    _change(folder, lambda value: value["exec"].update(learning_rate=-1, batch_size=0))


def no_rows(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()


def no_model(folder: Path) -> None:
    _change(folder, lambda value: value["model"].update(hf_repo=str(folder / "elsewhere")))


def cut_weights(folder: Path) -> None:
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def no_stack_for_it(folder: Path) -> None:
    _change(folder, lambda value: value["adapter"].update(method="qlora") or value["quant"].update(base="nf4"))


def warm_up_too_long(folder: Path) -> None:
    _change(folder, lambda value: value["exec"].update(warmup_steps=10_000))


def _change(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    value = json.loads((folder / "run.json").read_text())
    change(value)
    (folder / "run.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (no_yaml, ("run.json", "JSON")),
        (unknown_field, ("exec", "learning_speed")),
        (two_faults, ("2 faults", "learning_rate", "batch_size", " | ")),
        (no_rows, ("rows.jsonl",)),
        (no_model, ("elsewhere",)),
        (cut_weights, ("model.safetensors",)),
        (no_stack_for_it, ("the contract is refused, for 1 reason: no_stack: got lane production, method qlora, base nf4",)),
        (warm_up_too_long, ("warmup",)),
    ],
)
def test_a_wrong_contract_is_usage(parity: Parity, folder: Path, spoil: Callable[[Path], None], told: tuple[str, ...]) -> None:
    spoil(folder)
    refused(parity("--contract", "run.json"), 2, *told)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--contract", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("--contract", "run.json", "--set", "exec.speed=3"), 2, "speed"),
        (("--contract", "run.json", "--preset", "tiny"), 2, "tiny"),
        (("--contract", "run.json", "--model", "nowhere/at-all"), 4, "nowhere/at-all"),
        (("--contract", "run.json", "--stacks", "gamma"), 2, "there is no stack 'gamma'; allowed: alpha, beta"),
        (
            ("--contract", "run.json", "--device", "alpha=WEBGPU"),
            2,
            "alpha, which does not take this run: device: got exec.device WEBGPU; allowed: stack",
        ),
        (("--contract", "run.json", "--allow-uncovered", "everything"), 2, "allowed: same_function, precision, fast_path"),
        (("--set", "exec.seq_len=3"), 2, "add --contract run.yaml"),
        (("--only", "d.run_float32"), 2, "name its contract"),
        (("--waivers", "none.toml"), 2, "none.toml"),
        (("--from", "run.json"), 2, "add --rerun-failed"),
    ],
)
def test_wrong_flags(parity: Parity, arguments: tuple[str, ...], code: int, told: str) -> None:
    refused(parity(*arguments), code, told)


def test_a_stack_that_it_leads_to_and_that_is_not_installed_is_missing(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = own_run_stack.declared("production", {"inferred_for": [{"lane": "production", "methods": ["lora"]}]}, packages=("frobnicate",))
    known = {"alpha": StackInfo(name="alpha", command=("nothing",), capabilities=absent)}
    monkeypatch.setattr(discover, "discover", lambda: known)
    refused(parity("--contract", "run.json"), 4, "not_installed: got stack alpha without frobnicate")


def test_a_contract_that_is_sound(folder: Path) -> None:
    """Neither lane nor the stack that it leads to keeps a stack from being asked; a device that it lacks does."""
    given = ContractOptions(file=folder / "run.json")
    found = gating.read(given, own_run_stack.two(), (), {}, lambda text: None)
    assert found.devices == {"alpha": "CPU", "beta": "CPU"}
    assert found.declined == {}
    assert found.own.stacks == ("alpha", "beta")
    found = gating.read(given, own_run_stack.two(devices=("METAL",)), (), {}, lambda text: None)
    assert found.devices == {"alpha": "CPU"}
    assert found.declined["beta"].startswith("device: got exec.device CPU; allowed: stack beta: METAL")
    found = gating.read(given, own_run_stack.two(devices=("METAL",)), (), {"beta": "METAL"}, lambda text: None)
    assert found.devices == {"alpha": "CPU", "beta": "METAL"}


def test_qlora_is_lora_on_nf4_whichever_a_stack_calls_it(folder: Path) -> None:
    known = own_run_stack.two()
    contract = gating._read(ContractOptions(file=folder / "run.json", settings=("adapter.method=qlora", "quant.base=nf4")))
    assert gating.why_not(contract, known["beta"], "CPU") == "", "beta says lora on nf4"
    assert gating.why_not(contract, known["alpha"], "CPU").startswith("method_and_base: got qlora on base nf4")


def test_a_checkpoint_in_place_of_the_contracts(folder: Path) -> None:
    other = folder / "other"
    (folder / "model").rename(other)
    contract = gating._read(ContractOptions(file=folder / "run.json", model=str(other)))
    assert contract.model.hf_repo == str(other)
    assert ContractOptions(file=Path("a b.yaml"), preset="smoke", settings=("x=[1, 2]",)).flags == (
        "--contract 'a b.yaml' --preset smoke --set 'x=[1, 2]'"
    )
