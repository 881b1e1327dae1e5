"""`parity capture`, `compare` and `compare-env` as a user meets them; on both real stacks at night."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from contract.errors import Interrupted
from parity import cli
from parity.capture import take
from parity.report.record import Result, Run
from tests.parity.numpy_stack import configure

Parity = Callable[..., tuple[object, str, str]]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Parity:
    """Runs a command in a folder whose parity.toml adds two stacks in NumPy: exit code, standard output, standard error."""
    configure(tmp_path, one=[], two=[])
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["parity", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


def test_two_captures_are_compared(parity: Parity, tmp_path: Path) -> None:
    """Workers, files, table, record: from end to end."""
    code, out, _ = parity("capture", "--stack", "one", "--only", "a.silu", "--profile", "quick", "--out", "first")
    assert code == 0
    assert "1 check, 12 examples, 24 requests" in out
    assert "next: parity compare first OTHER_DIR" in out
    assert "MiB in first" in out
    assert parity("capture", "--stack", "two", "--only", "a.silu", "--profile", "quick", "--out", "second")[0] == 0
    code, out, _ = parity("compare", "first", "second", "--json", "record.json", "--junit", "record.xml")
    assert code == 0
    assert "PASS  tier A: 5 pass" in out
    assert "one answered 20" in out
    record = json.loads((tmp_path / "record.json").read_text())
    assert [stack["name"] for stack in record["stacks"]] == ["one", "two"]
    assert (tmp_path / "record.xml").exists()


def test_a_divergence_says_how_to_look_for_the_fault(parity: Parity) -> None:
    parity("capture", "--stack", "two", "--only", "a.matmul", "--profile", "quick", "--device", "NEGATED", "--out", "wrong")
    code, out, _ = parity("compare", "wrong")
    assert code == 1
    assert "again: parity run --only a.matmul --stacks two --device two=NEGATED" in out
    assert "no failure is shrunk" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("capture", "--stack", "three", "--out", "x"), 2, "there is no stack 'three'"),
        (("capture", "--stack", "one", "--profile", "slow", "--out", "x"), 2, "there is no profile 'slow'"),
        (("capture", "--stack", "one", "--device", "ABACUS", "--out", "x"), 2, "has no device 'ABACUS'"),
        (("capture", "--stack", "one", "--out", "capabilities.json"), 2, "is no folder"),
        (("capture", "--stack", "one", "--only", "a.exp", "--device", "ABSENT", "--out", "x"), 4, "there is no such device"),
        (("compare", "absent"), 4, "absent holds no capture"),
        (("compare-env", "one", "nowhere"), 2, "'nowhere' is no stack of parity.toml"),
        (("compare-env", "one", "two", "--device", "three=CPU"), 2, "--device names three"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(parity: Parity, words: tuple[str, ...], code: int, message: str) -> None:
    got, out, err = parity(*words)
    assert (got, out) == (code, "")
    assert err.count("\n") == 1
    assert message in err


def test_ctrl_c_says_how_to_go_on(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object) -> NoReturn:
        raise Interrupted("interrupted; out is whole up to there; the same command goes on")

    monkeypatch.setattr(take, "take", interrupted)
    code, _, err = parity("capture", "--stack", "one", "--out", "out")
    assert (code, err) == (130, "parity: interrupted; out is whole up to there; the same command goes on\n")


def told(run: Run) -> list[Result]:
    """What a run says of stacks; how long it took, and where the time went, is another matter."""
    return [result.model_copy(update={"seconds": 0.0}) for result in run.results]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_captures_of_the_real_stacks_get_the_verdicts_of_a_run(parity: Parity, tmp_path: Path) -> None:
    """Tier B, and a whole graph: every status, observed value and bound."""
    (tmp_path / "parity.toml").unlink()
    checks = ("b.quantize", "b.quantize_subnormal", "b.offset", "b.nest", "b.unnest", "b.dequantize", "b.dequantize_subnormal", "b.linear",
              "b.laws", "c.llama")  # fmt: skip
    only = [word for check in checks for word in ("--only", check)]
    for stack in ("torch_qlora", "tinygrad_lora"):
        assert parity("capture", "--stack", stack, *only, "--profile", "quick", "--out", stack)[0] == 0
    assert parity("compare", "torch_qlora", "tinygrad_lora", "--json", "compared.json")[0] == 0
    stacks = ("--stacks", "torch_qlora,tinygrad_lora")
    assert parity("run", *stacks, *only, "--profile", "quick", "--json", "run.json")[0] == 0
    compared, run = (Run.model_validate_json((tmp_path / name).read_text()) for name in ("compared.json", "run.json"))
    assert told(compared) == told(run)
