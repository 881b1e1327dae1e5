"""What `finetune preflight` checks on files: model, tokenizer, rows, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from contract.data.census import Census
from contract.run.preflight import FileReport, preflight
from contract.run.survey import Options
from tests.contract.model import tiny_checkpoint
from tests.contract.run import small_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_run.make(tmp_path)


def checked(folder: Path, *, scan: bool = False, labels: bool = False, **changed: Any) -> FileReport | dict[str, str]:
    """The report, or gate -> what was got."""
    options = Options(cache=folder / "cache", device_memory=1)
    answer = preflight(small_run.run_of(folder, **changed), scan=scan, labels=labels, options=options)
    return answer if isinstance(answer, FileReport) else {refusal.gate: refusal.got for refusal in answer}


def test_sound_files(folder: Path) -> None:
    report = checked(folder)
    assert isinstance(report, FileReport)
    assert (report.model_type, report.shards, report.dtypes, report.scanned) == ("llama", 1, ("F32",), False)
    assert (report.vocab_size, report.tokenizer_ids, report.rows, report.rows_kept) == (30, 5, 40, 30)
    assert report.weight_bytes == 4 * report.parameters
    assert FileReport.model_validate_json(report.model_dump_json()) == report


def test_the_schedule_is_no_matter_of_files(folder: Path) -> None:
    assert isinstance(checked(folder, exec__warmup_steps=10**6), FileReport)


def test_no_stack_has_to_be_there(folder: Path) -> None:
    assert isinstance(checked(folder, stack="nobody", exec__device="WEBGPU"), FileReport)


@pytest.mark.parametrize("fields", [{}, {"graph": "qlora_proxy_v1", "adapter__targets": "lm_head_proxy"}], ids=str)
def test_nan_is_found_by_a_scan_alone(folder: Path, fields: dict[str, Any]) -> None:
    tensors = tiny_checkpoint.squared(tiny_checkpoint.weights(vocab_size=30))
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 4] = np.nan
    tiny_checkpoint.write(folder / "model", tensors, vocab_size=30, **tiny_checkpoint.SQUARE)
    assert isinstance(checked(folder, **fields), FileReport)
    found = checked(folder, scan=True, **fields)
    assert isinstance(found, dict)
    assert "o_proj.weight: 1 NaN or infinite values" in found["weights"]


def test_a_scan_tells_how_far_it_is(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    options = Options(cache=folder / "cache")
    report = preflight(small_run.run_of(folder), scan=True, options=options, scanned=lambda done, total: told.append((done, total)))
    assert isinstance(report, FileReport)
    assert report.scanned
    assert len(told) == len(tiny_checkpoint.weights(vocab_size=30))
    assert told[-1] == (report.weight_bytes, report.weight_bytes)
    assert told == sorted(told)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    for ids in (30, 31):
        words = {f"w{number}": number for number in range(ids - 1)} | {"</s>": ids - 1}
        library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
        library.save(str(folder / "model" / "tokenizer.json"))
        assert ids == 31 or isinstance(checked(folder), FileReport)
    assert checked(folder) == {"tokenizer_ids": "a tokenizer with ids 0 to 30, and a model of vocab_size 30"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model": 1}', '{"version": "1.0"}', "[" * 20000, '{"a": NaN}'], ids=lambda text: text[:9]
)
def test_a_damaged_tokenizer(folder: Path, content: str) -> None:
    (folder / "model" / "tokenizer.json").write_text(content)
    found = checked(folder)
    assert isinstance(found, dict)
    assert set(found) == {"tokenizer"}


def test_a_template_that_does_not_compile(folder: Path) -> None:
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    assert isinstance(checked(folder), FileReport)
    found = checked(folder, data__template="tokenizer")
    assert isinstance(found, dict)
    assert set(found) == {"tokenizer"}


def test_a_file_that_is_read_for_two_reasons_is_refused_once(folder: Path) -> None:
    (folder / "model" / "tokenizer_config.json").write_text("[")
    answer = preflight(small_run.run_of(folder, data__template="tokenizer"), options=Options(cache=folder / "cache"))
    assert isinstance(answer, tuple)
    assert ["tokenizer_config.json" in refusal.got for refusal in answer] == [True]


def test_the_vox_table_needs_no_file(folder: Path) -> None:
    (folder / "model" / "tokenizer.json").unlink()
    assert checked(folder, data__tokenizer_mode="vox", adapter__method="lora") == {
        "vox_ids": "tokenizer vox, whose ids are 0 to 130, with a model of vocab_size 30"
    }


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("\n")
    (folder / "model" / "tokenizer.json").unlink()
    found = checked(folder, exec__seq_len=33)
    assert isinstance(found, dict)
    assert list(found) == ["data", "tokenizer_file", "positions"]


def test_bad_rows_that_are_skipped_are_listed(folder: Path) -> None:
    with open(folder / "rows.jsonl", "a") as file:
        file.write('{"prompt": 5, "response": "x"}\n')
    report = checked(folder, data__skip_bad_rows=True)
    assert isinstance(report, FileReport)
    assert report.rows_left_out["bad"] == 1
    assert any(note.startswith("line 41: got 5") for note in report.notes)


def test_labels_are_counted_when_asked_for(folder: Path) -> None:
    """A row is `question [UNK]`, a line feed that this tokenizer leaves out, and `answer`; the last position is learnt."""
    fields = {"objective": "last_k", "exec__ce_last_k": 1}
    uncounted, report = checked(folder, **fields), checked(folder, labels=True, **fields)
    assert isinstance(uncounted, FileReport)
    assert uncounted.labels is None
    assert isinstance(report, FileReport)
    assert report.labels == Census(rows=30, tokens=90, learnt=30, longest=3, truncated=0, skipped={}, first_skipped=None)


def test_truncated_and_skipped_rows_are_counted_and_too_many_are_refused(folder: Path) -> None:
    """Cut on the right, a supervised row of chatml keeps its prompt alone."""
    cut = {"exec__seq_len": 4, "exec__ce_last_k": 1, "data__truncation": "right"}
    report = checked(folder, labels=True, **cut, exec__max_skip_rate=1.0)
    assert isinstance(report, FileReport)
    assert report.labels is not None
    assert (report.labels.truncated, report.labels.skipped, report.labels.first_skipped) == (30, {"truncated away": 30}, 2)
    assert "100.0% of 30 rows without a token to learn (30 truncated away; the first in line 2)" in str(
        checked(folder, labels=True, **cut, exec__max_skip_rate=0.99)
    )


def test_counting_labels_tells_how_far_it_is(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    options = Options(cache=folder / "cache")
    preflight(small_run.run_of(folder), labels=True, options=options, labelled=lambda done, total: told.append((done, total)))
    assert told == [(30, 30)]
