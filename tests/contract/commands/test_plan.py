"""`finetune plan` and `finetune preflight`: what is printed, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contract import cli
from tests.contract.run import small_run

BROKEN = """
stack: beta
model: {hf_repo: model}
data: {train_file: rows.jsonl, tokenizer_mode: vox}
adapter: {method: lora}
quant: {base: none}
exec: {seq_len: 33, warmup_steps: 1000, lm_head_only: true}
"""

# ruamel, numpy and psutil are asked for here; these take longer, and a plan needs none of them
HEAVY = ("gguf", "huggingface_hub", "httpx", "jinja2", "mpmath", "peft", "rich", "scipy", "tinygrad", "tokenizers", "torch", "transformers")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_run.make(tmp_path)
    small_run.stacks_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sound = {
        "stack": "alpha",
        "model": {"hf_repo": "model"},
        "data": {"train_file": "rows.jsonl"},
        "exec": {"seq_len": 16, "warmup_steps": 6},
    }
    (tmp_path / "run.json").write_text(json.dumps(sound))
    # alpha is told apart from the installed stacks, which the same lane and method lead to
    alpha = json.loads((tmp_path / "alpha.json").read_text())
    alpha["training"]["inferred_for"] = [{"lane": "production", "methods": ["qlora"]}]
    (tmp_path / "alpha.json").write_text(json.dumps(alpha))
    (tmp_path / "broken.yaml").write_text(BROKEN)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr()
    return caught.value.code, shown.out, shown.err


def test_a_plan(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(monkeypatch, capsys, "plan", "run.json", "--device-memory", "1GiB")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["stack"] == "alpha on CPU"
    assert lines["graph"] == "full_causal, objective chatml_supervised"
    assert lines["rows"] == "30 of 40 (10 by rating), 1 held back"
    assert lines["steps"] == "6"
    assert lines["memory"].endswith("of 1.00 GiB (as given)")
    assert lines["process"] == "1000 B"
    assert len(lines["digest"]) == len(lines["parity"]) == 64


def test_a_plan_as_json(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "plan", "run.json", "--json", "--set", "exec.epochs=5")
    assert code == 0
    assert json.loads(out)["steps"] == 10


def test_five_broken_gates_are_five_refusals(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(monkeypatch, capsys, "plan", "broken.yaml")
    assert (code, err) == (2, "")
    assert out.startswith("refused, for 5 reasons\n")
    gates = ["research_lane", "proxy_fields", "positions", "vox_ids", "warmup"]
    assert [line.split()[1] for line in out.splitlines() if line[:1].isdigit()] == gates
    for part in ("got", "allowed", "remedy"):
        assert sum(line.split()[:1] == [part] for line in out.splitlines()) == 5


def test_refusals_as_json(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "plan", "broken.yaml", "--json")
    refusals = json.loads(out)["refusals"]
    assert (code, len(refusals)) == (2, 5)
    assert all(set(refusal) == {"gate", "got", "allowed", "remedy"} and all(refusal.values()) for refusal in refusals)


@pytest.mark.parametrize("command", ["plan", "preflight"])
def test_a_contract_that_can_t_be_read_is_refused_in_the_same_form(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (folder / "wrong.yaml").write_text("model: {}\ndata: {}\nexec: {epochs: -1}\n")
    code, out, _ = run(monkeypatch, capsys, command, "wrong.yaml", "--json")
    assert code == 2
    assert [refusal["gate"] for refusal in json.loads(out)["refusals"]] == ["contract", "contract"]
    code, out, _ = run(monkeypatch, capsys, command, "nothing.yaml")
    assert code == 2
    assert "nothing.yaml: no such file" in out


def test_a_size_that_is_none_is_a_usage_error(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(monkeypatch, capsys, "plan", "run.json", "--device-memory", "16GB")
    assert (code, out) == (2, "")
    assert err.startswith("finetune: --device-memory: got '16GB'; allowed: a number and one of B, KiB")


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "plan", "run.json", "--device-memory", "4KiB")
    assert code == 2
    assert "1. memory" in out


def test_preflight(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "preflight", "run.json", "--scan")
    assert code == 0
    assert "every weight read, none NaN or infinite" in out
    assert "ids 0 to 4; the model has 30" in out
    code, out, _ = run(monkeypatch, capsys, "preflight", "run.json", "--json")
    assert (code, json.loads(out)["scanned"]) == (0, False)


def test_preflight_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model" / "model.safetensors").write_bytes(b"\xff" * 100)
    code, out, _ = run(monkeypatch, capsys, "preflight", "run.json")
    assert code == 2
    assert out.startswith("refused, for 1 reason\n")
    assert "model.safetensors" in out


def test_a_plan_loads_no_heavy_module(folder: Path) -> None:
    code = f"""
import sys
from contract import cli
sys.argv = ["finetune", "plan", "run.json"]
try:
    cli.main()
finally:
    loaded = sorted(set({HEAVY!r}) & set(sys.modules))
    assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
