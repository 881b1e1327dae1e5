"""The data set that is shipped, and the script that makes it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from contract.data import rows
from contract.data.train_rows import TrainRows
from contract.model import folder
from contract.run.planner import ExecutionPlan, plan
from contract.run.source import read_contract
from contract.worker.discover import discover
from examples.dialogues import make

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "dialogues"
LINES = (FOLDER / "train.jsonl").read_bytes().splitlines(keepends=True)

SOURCES = {
    "talk": b"""
categories: [talk]
conversations:
- - 'Hi  there,

    you'
  - Hello.
- - How are you?
  - Well. You?
  - Well.
- - A?
  - b
  - C?
  - |
    d \xc3\xa9
    e
- - Nobody answers
- no list
""",
    "more": b"conversations:\n- [Bend over, no]\n- [Year?, '1969']\n- [Year?, 1969]\n",
}
MADE = (
    '{"prompt": "Hi there, you", "response": "Hello.", "category": "talk"}\n'
    '{"prompt": "How are you?", "response": "Well. You?", "category": "talk"}\n'
    '{"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "b"}, '
    '{"role": "user", "content": "C?"}, {"role": "assistant", "content": "d é e"}], "category": "talk"}\n'
    '{"prompt": "Year?", "response": "1969", "category": "more"}\n'
).encode()


def test_every_line_is_a_row_without_a_remark() -> None:
    remarks = [(number, remark) for number, line in enumerate(LINES, 1) for remark in rows.noted(line, number, "train.jsonl")[1]]
    assert len(LINES) >= 200
    assert remarks == []


def test_lines_are_as_the_script_writes_them() -> None:
    assert [json.dumps(json.loads(line), ensure_ascii=False).encode() + b"\n" for line in LINES] == LINES


def test_the_readme_counts_as_the_file_does() -> None:
    readme = (FOLDER / "README.md").read_text()
    counted = Counter(rows.parse(line, number, "train.jsonl").category for number, line in enumerate(LINES, 1))
    assert {name: int(count) for name, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", readme, re.MULTILINE)} == counted
    assert readme.startswith(f"# {len(LINES)} dialogues\n")
    assert set(counted) == set(make.NAMES)


def test_licence_and_source_are_named() -> None:
    licence, readme = (FOLDER / "LICENSE").read_text(), (FOLDER / "README.md").read_text()
    assert licence.startswith("Copyright (c) 2017, Gunther Cox")
    for part in (
        "Redistributions of source code",
        "Redistributions in binary form",
        "Neither the name of",
        "PROVIDED BY THE COPYRIGHT HOLDERS",
    ):
        assert part in licence
    assert "chatterbot-corpus](https://github.com/gunthercox/chatterbot-corpus) 1.3.3" in readme
    assert "(LICENSE)" in readme


def test_its_contract_is_planned_and_cuts_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    contract = read_contract(FOLDER / "run.yaml")
    planned = plan(contract, discover())
    assert isinstance(planned, ExecutionPlan), planned
    assert (planned.rows.total, planned.rows.kept) == (len(LINES), len(LINES))
    assert planned.steps is None or 40 <= planned.steps <= 60
    tokenizer = folder.locate("smollm2-135m") / "tokenizer.json"
    learned = TrainRows(contract, tokenizer_json=tokenizer, cache=tmp_path).labelled(range(len(LINES)))
    assert len(learned.examples) == len(LINES)
    assert sum(len(example.ids) == contract.exec.seq_len for example in learned.examples) == 1  # one is as long when cut


def test_the_script_makes_dialogues_of_lists() -> None:
    assert make.train_file(SOURCES) == MADE


def test_the_script_writes_the_same_bytes_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = _archive(tmp_path)
    monkeypatch.setattr(make, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys, "argv", ["make.py", str(archive), "--out", str(tmp_path / name)])
        make.main()
        written.append([(tmp_path / name / file).read_bytes() for file in ("train.jsonl", "LICENSE")])
    assert written[0] == written[1]
    assert written[0][0].count(b'"category": "trivia"') == MADE.count(b'"category": "talk"')
    assert written[0][1] == b"Do as you like.\n"


def test_the_script_refuses_another_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = _archive(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make.py", str(archive), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"wanted {make.SHA256}; download it"):
        make.main()
    assert not (tmp_path / "train.jsonl").exists()


def _archive(target: Path) -> Path:
    """A source archive of the same form, each of its files the same few dialogues."""
    contents = {f"chatterbot_corpus/data/english/{name}.yml": SOURCES["talk"] for name in make.NAMES} | {
        "license.md": b"\nDo as you like.\n\n"
    }
    path = target / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"{make.ROOT}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path
