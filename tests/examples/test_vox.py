"""The example of the research lane: its rows, its model, and a run of it from the contract to text, at tiny size."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from contract import cli
from contract.artifacts.telemetry import read_telemetry
from contract.data import rows
from contract.data.train_rows import TrainRows
from contract.data.vox import UNK_ID
from contract.model.checkpoint import open_checkpoint
from contract.run.planner import ExecutionPlan, plan
from contract.run.source import read_contract
from contract.worker.discover import discover
from examples.vox import make

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "vox"
LINES = (FOLDER / "train.jsonl").read_bytes().splitlines(keepends=True)


def finetune(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """The command in this process, its worker in another."""
    monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def test_every_line_is_a_row_without_a_remark_and_no_prompt_comes_twice() -> None:
    remarks = [(number, remark) for number, line in enumerate(LINES, 1) for remark in rows.noted(line, number, "train.jsonl")[1]]
    assert remarks == []
    assert len({json.loads(line)["prompt"] for line in LINES}) == len(LINES) >= 300


def test_the_script_writes_the_same_bytes_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["make.py", "--model", str(tmp_path / "model"), "--rows", str(tmp_path / "rows")])
    make.main()
    assert (tmp_path / "rows").read_bytes() == b"".join(LINES)
    first = (tmp_path / "model" / "model.safetensors").read_bytes()
    make.main()
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == first
    assert open_checkpoint(tmp_path / "model").layout.vocab_size == 131


def test_the_readme_counts_as_the_file_does() -> None:
    readme = (FOLDER / "README.md").read_text()
    counted = Counter(json.loads(line)["category"] for line in LINES)
    assert {name: int(count) for name, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", readme, re.MULTILINE)} == counted
    assert f"holds {len(LINES)} short requests" in readme


def test_its_contract_is_planned_and_its_rows_are_whole_and_spelt_by_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make.write_model(tmp_path / "model")
    monkeypatch.chdir(ROOT)
    contract = read_contract(FOLDER / "run.yaml", overrides=[f"model.hf_repo={tmp_path / 'model'}"])
    planned = plan(contract, discover())
    assert isinstance(planned, ExecutionPlan), planned
    assert (planned.stack, planned.model_type, planned.steps) == ("tinygrad_lora", "gpt2", 114)
    assert "step-00000114" in (FOLDER / "README.md").read_text()
    learned = TrainRows(contract, tokenizer_json=None, cache=tmp_path / "cache").labelled(range(len(LINES)))
    assert max(len(example.ids) for example in learned.examples) < contract.exec.seq_len
    for example in learned.examples:
        assert UNK_ID not in example.ids[example.labels >= 0]


@pytest.mark.nightly
def test_from_the_contract_to_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, merged, asked; validation falls. On a model of one layer, and rows that are cut short."""
    make.write_model(tmp_path / "model", layers=1, width=32)
    monkeypatch.chdir(ROOT)
    small = ("exec.seq_len=32", "exec.max_steps=8", "exec.grad_accum=1", "exec.warmup_steps=1", "exec.learning_rate=0.02")
    flags = [word for one in (f"model.hf_repo={tmp_path / 'model'}", *small) for word in ("--set", one)]
    finetune(monkeypatch, "train", FOLDER / "run.yaml", *flags, "--out", tmp_path / "run")
    told = read_telemetry(tmp_path / "run" / "telemetry.jsonl").rows
    before, after = told[0].validation_loss_before, told[-1].validation_loss
    assert before is not None
    assert after is not None
    assert after < before
    finetune(monkeypatch, "merge-weights", tmp_path / "run" / "checkpoints" / "step-00000008", tmp_path / "model", tmp_path / "merged")
    asked = ("--stack", "tinygrad_lora", "--tokenizer", "vox", "--prompt", "a table of users", "--max-new-tokens", "4", "--json")
    texts = []
    for model in (("--model", tmp_path / "merged"), ("--model", tmp_path / "model", "--adapter", tmp_path / "run" / "adapter")):
        capsys.readouterr()
        finetune(monkeypatch, "generate", *model, *asked)
        texts.append([one["ids"] for one in json.loads(capsys.readouterr().out)["sequences"]])
    assert texts[0] == texts[1]
    assert len(texts[0][0]) == 4 or texts[0][0][-1] == 2
