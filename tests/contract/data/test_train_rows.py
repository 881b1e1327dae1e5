"""From a train file to optimiser steps, by a contract alone: what a stack will be given."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contract.data.row import IGNORE_INDEX
from contract.data.train_rows import TrainRows
from contract.errors import ContractError
from contract.run.spec import FineTuneContract
from tests.contract.data import read_tokenizers

ROWS = [
    {"prompt": "2 + 2?", "response": "4"},
    {"prompt": "Name three colours.", "response": "Red, green and blue.", "rating": 5},
    {"prompt": "Too bad", "response": "to keep", "rating": 1},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi."}]},
    {"prompt": "A long one", "response": "with many words " * 30},
    *({"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n)))} for n in range(2, 14)),
]


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def rows_of(train_file: Path, *, tokenizer: str = "smollm2", data: dict[str, Any] | None = None, **changes: Any) -> TrainRows:
    """`changes`: of exec, but for objective."""
    top = {"objective": changes.pop("objective")} if "objective" in changes else {}
    run = {"seq_len": 64, "batch_size": 2, "grad_accum": 2, "epochs": 2} | changes
    contract = FineTuneContract.model_validate(
        {"model": {"hf_repo": "x"}, "data": {"train_file": str(train_file), "validation_split": 0.2} | (data or {}), "exec": run} | top
    )
    tokenizer_json = None if contract.data.tokenizer_mode == "vox" else read_tokenizers.folder(tokenizer) / "tokenizer.json"
    return TrainRows(contract, tokenizer_json=tokenizer_json, cache=train_file.parent / "cache")


def learned(rows: TrainRows, number: int) -> str:
    """What a row teaches, as text."""
    [example] = rows.labelled([number]).examples
    return rows.tokenizer.decode(example.labels[example.labels != IGNORE_INDEX].tolist())


def test_what_a_row_teaches(train_file: Path) -> None:
    rows = rows_of(train_file)
    assert (rows.index.total, rows.index.kept) == (17, 16)
    assert [learned(rows, number) for number in (0, 1, 2)] == ["4<|im_end|>", "Red, green and blue.<|im_end|>", "Hi.<|im_end|>"]


def test_a_system_prompt_is_for_rows_that_have_none(train_file: Path) -> None:
    rows = rows_of(train_file, data={"system_prompt": "Answer."})
    first, own = (rows.rendered(rows.index.row(number)).text for number in (0, 2))
    assert first.startswith("<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\n2 + 2?")
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<")


def test_an_empty_system_prompt_is_a_system_turn(train_file: Path) -> None:
    rows = rows_of(train_file, data={"system_prompt": ""})
    assert rows.rendered(rows.index.row(0)).text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n2 + 2?")


@pytest.mark.parametrize(
    "how", [{}, {"objective": "last_k"}, {"data": {"template": "tokenizer"}}], ids=["chatml", "last_k", "the model's own template"]
)
def test_special_tokens_in_a_row_are_text_unless_asked_for(tmp_path: Path, how: dict[str, Any]) -> None:
    path, word = tmp_path / "train.jsonl", "<|endoftext|>"
    path.write_text(json.dumps({"prompt": f"a{word}b", "response": "c"}) + "\n")

    def spelt(asked: bool) -> int:
        rows = rows_of(path, **how | {"data": how.get("data", {}) | {"parse_special_tokens": asked}})
        [example] = rows.labelled([0]).examples
        return rows.tokenizer.decode([index for index in example.ids.tolist() if index < 17]).count(word)  # SmolLM2's special ids

    assert (spelt(False), spelt(True)) == (0, 1)


def test_packing_puts_several_rows_into_a_sequence(train_file: Path) -> None:
    def sequences(packing: bool) -> list[int]:
        steps = rows_of(train_file, packing=packing, epochs=1).steps().steps()
        return [len(segments) for step in steps for batch in step.batches for segments in batch.samples]

    assert set(sequences(packing=False)) == {1}
    assert max(sequences(packing=True)) > 1


def test_padding_is_the_end_of_sequence_for_training_and_validation(train_file: Path) -> None:
    rows = rows_of(train_file, data={"tokenizer_mode": "vox"})
    for steps in (rows.steps(), rows.validation()):
        padding = {int(index) for step in steps.steps() for batch in step.batches for index in batch.ids_BT[~batch.attention_BT]}
        assert padding == {rows.tokenizer.eos_id}


def test_the_models_own_template(train_file: Path) -> None:
    rows = rows_of(train_file, data={"template": "tokenizer"})
    assert "helpful AI assistant named SmolLM" in rows.rendered(rows.index.row(0)).text
    assert learned(rows, 0) == "4<|im_end|>\n"


@pytest.mark.parametrize("k", [1, 3])
def test_last_k_learns_by_position(train_file: Path, k: int) -> None:
    rows = rows_of(train_file, objective="last_k", ce_last_k=k)
    [example] = rows.labelled([1]).examples
    assert rows.rendered(rows.index.row(1)).text == "Name three colours.\nRed, green and blue."
    assert [t for t, label in enumerate(example.labels) if label != IGNORE_INDEX] == list(range(len(example.ids) - k, len(example.ids)))


@pytest.mark.parametrize(("side", "kept"), [("left", "words <|im_end|>"), ("right", "with many")])
def test_a_long_row_is_cut_where_the_contract_says(train_file: Path, side: str, kept: str) -> None:
    rows = rows_of(train_file, data={"truncation": side}, seq_len=24)
    found = rows.labelled([3])
    [example] = found.examples
    assert (found.truncated, len(example.ids)) == (1, 24)
    text = rows.tokenizer.decode(example.labels[example.labels != IGNORE_INDEX].tolist())
    assert text.endswith(kept) if side == "left" else text.startswith(kept)


def test_vox_needs_no_file(train_file: Path) -> None:
    rows = rows_of(train_file, data={"tokenizer_mode": "vox"})
    assert learned(rows, 0) == "4<|im_end|>"
    assert rows.labelled([0]).examples[0].ids[-1] == rows.tokenizer.eos_id == 2


def test_hf_without_a_file_is_refused(train_file: Path) -> None:
    contract = FineTuneContract.model_validate({"model": {"hf_repo": "x"}, "data": {"train_file": str(train_file)}})
    with pytest.raises(ContractError, match=r"model\.tokenizer_json: got nothing"):
        TrainRows(contract, cache=train_file.parent / "cache")


def test_a_home_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"data\.train_file: got '~nobody-of-that-name/x'"):
        rows_of(Path("~nobody-of-that-name/x"))


@pytest.mark.parametrize("packing", [False, True])
def test_every_row_is_met_once_an_epoch_and_none_that_is_held_back(train_file: Path, packing: bool) -> None:
    rows = rows_of(train_file, packing=packing)
    steps = list(rows.steps().steps())
    held_back = {sample for step in rows.validation().steps() for batch in step.batches for segment in batch.samples for sample in segment}
    assert (len(held_back), rows.split.training) == (3, 13)
    for epoch in range(2):
        met = Counter(
            sample for step in steps if step.epoch == epoch for batch in step.batches for segment in batch.samples for sample in segment
        )
        assert met == Counter(set(range(16)) - held_back)
    assert len(steps) == rows.steps().total


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("objective", ["chatml_supervised", "last_k"])
def test_a_resumed_run_meets_the_same_batches(train_file: Path, packing: bool, objective: str) -> None:
    whole = list(rows_of(train_file, packing=packing, objective=objective).steps().steps())
    resumed = list(rows_of(train_file, packing=packing, objective=objective).steps().steps(2))
    assert len(whole) > 3
    assert [step.number for step in resumed] == [step.number for step in whole[2:]]
    for one, other in zip(whole[2:], resumed, strict=True):
        for batch, again in zip(one.batches, other.batches, strict=True):
            assert (batch.ids_BT == again.ids_BT).all()
            assert (batch.labels_BT == again.labels_BT).all()


def test_packing_changes_no_target(train_file: Path) -> None:
    """Each token that is learnt, with all that stands before it in its own row."""

    def targets(packing: bool) -> Counter[tuple[int, ...]]:
        found: Counter[tuple[int, ...]] = Counter()
        for step in rows_of(train_file, packing=packing, epochs=1).steps().steps():
            for batch in step.batches:
                for row, at in zip(*(batch.labels_BT != IGNORE_INDEX).nonzero(), strict=True):
                    start = at - batch.positions_BT[row, at]
                    found[(*batch.ids_BT[row, start:at].tolist(), int(batch.labels_BT[row, at]))] += 1
        return found

    assert targets(packing=True) == targets(packing=False)


def test_the_seed_decides_the_order_and_who_is_held_back(train_file: Path) -> None:
    def order(seed: int) -> list[Any]:
        rows = rows_of(train_file, seed=seed)
        return [batch.samples for step in [*rows.steps().steps(), *rows.validation().steps()] for batch in step.batches]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize(("max_steps", "steps"), [(1, 1), (5, 5), (8, 8), (1000, 8)])
def test_max_steps_ends_a_run(train_file: Path, max_steps: int, steps: int) -> None:
    whole, cut = rows_of(train_file).steps(), rows_of(train_file, max_steps=max_steps).steps()
    assert (whole.total, cut.total) == (8, steps)
    assert [step.number for step in cut.steps()] == list(range(steps))
    assert [step.number for step in cut.steps(3)] == list(range(3, steps))
