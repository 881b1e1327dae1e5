"""Ids and labels against what transformers and TRL make of the same dialogues (golden/make_labels_golden.py)."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from contract.data.labels import Labelled, last_k, supervised
from contract.data.row import IGNORE_INDEX, Message, Row
from contract.data.template import ChatTemplate
from contract.data.text import Rendered, chatml, plain
from contract.data.tokenizer_config import TokenizerConfig, read_tokenizer_config
from tests.contract.data.golden.golden_dialogues import DIALOGUES, SPECIAL
from tests.contract.data.read_tokenizers import GOLDEN, folder, tokenizer

SIDES = {None: "left", "keep_start": "right", "keep_end": "left"}
WHOLE = 10**6

LAST_CHARACTER = "transformers stops at the first token of an answer's last character; here that has several, and all are learnt"
PROMPT_ALONE = (
    "TRL encodes the prompt alone, where its last space and the line feed after it are other tokens: it learns those of the prompt"
)
DIFFERENT = {
    ("smollm2", "bare"): dict.fromkeys(["decomposed accents", "joined emoji", "private use"], LAST_CHARACTER),
    ("across", "bare"): dict.fromkeys(
        ["decomposed accents", "Greek and Japanese", "joined emoji", "private use", "right to left"], LAST_CHARACTER
    ),
    ("smollm2", "plain"): dict.fromkeys(
        ["space after the prompt", "spaces all around", "emoji across the border", "long prompt"], PROMPT_ALONE
    ),
}
"""(tokenizer, set-up) -> dialogue -> why our labels are others on purpose."""


@cache
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "labels.json").read_text(encoding="utf-8"))


@cache
def dialogues() -> dict[str, Row]:
    both = {**DIALOGUES, **SPECIAL}
    return {title: Row(line=1, messages=tuple(Message(**turn) for turn in turns)) for title, turns in both.items()}


@cache
def template(name: str, setup: str) -> ChatTemplate:
    config = read_tokenizer_config(folder(name) / "tokenizer.json")
    if setup != "own":
        config = TokenizerConfig(named=config.named, template=golden()["templates"][setup], place=setup)
    return ChatTemplate(config, special_tokens=tokenizer(name).special_tokens)


def rendered(name: str, setup: str, row: Row) -> Rendered:
    if setup == "chatml":
        return chatml(row)
    return plain(row) if setup in ("plain", "last_k") else template(name, setup).render(row)


def ours(name: str, setup: str, row: Row, mode: str | None) -> Labelled:
    seq_len = WHOLE if mode is None else golden()["seq_len"]
    text = [rendered(name, setup, row)]
    if setup == "last_k":
        return last_k(tokenizer(name), text, samples=[0], seq_len=seq_len, k=golden()["k"])
    return supervised(tokenizer(name), text, samples=[0], seq_len=seq_len, truncation=SIDES[mode])


def expected(case: dict[str, Any]) -> tuple[list[int], list[int]] | None:
    """Theirs, but for the two things that are other everywhere on purpose."""
    ids, labels = case["ids"], case["labels"]
    eos = tokenizer(case["tokenizer"]).eos_id
    if case["setup"] == "bare":
        # The template does not end a turn, so neither transformers nor TRL teach the model to stop; we append the end of sequence.
        ids = ids if ids is not None else unlabelled(case["dialogue"], case["tokenizer"])
        labels = [IGNORE_INDEX] * len(ids) if labels is None else labels
        ids, labels = [*ids, eos], [*labels, eos]
    if ids is None:
        return None
    # Nothing predicts the first token: TRL leaves its label to the loss to drop.
    labels = [IGNORE_INDEX, *labels[1:]]
    return (ids, labels) if set(labels) != {IGNORE_INDEX} else None


def unlabelled(dialogue: str, name: str) -> list[int]:
    return tokenizer(name).encode_batch([rendered(name, "bare", dialogues()[dialogue])])[0].ids.tolist()


def groups() -> list[tuple[str, str]]:
    return sorted({(case["tokenizer"], case["setup"]) for case in golden()["cases"]})


@pytest.mark.parametrize(("name", "setup"), groups())
def test_ids_and_labels_are_those_of_transformers_and_trl(name: str, setup: str) -> None:
    cases = [case for case in golden()["cases"] if (case["tokenizer"], case["setup"]) == (name, setup)]
    other = {}
    for case in cases:
        done = ours(name, setup, dialogues()[case["dialogue"]], case["mode"])
        got = (done.examples[0].ids.tolist(), done.examples[0].labels.tolist()) if done.examples else None
        if got != expected(case):
            other[case["dialogue"], case["mode"]] = (got, expected(case))
    assert {dialogue for dialogue, _ in other} == set(DIFFERENT.get((name, setup), {})), other


@pytest.mark.parametrize(("name", "setup"), sorted(DIFFERENT))
def test_where_labels_differ_on_purpose_ids_do_not_and_borders_are_the_texts(name: str, setup: str) -> None:
    for case in golden()["cases"]:
        if (case["tokenizer"], case["setup"]) == (name, setup) and case["dialogue"] in DIFFERENT[name, setup] and case["ids"]:
            wanted = expected(case)
            example = ours(name, setup, dialogues()[case["dialogue"]], case["mode"]).examples[0]
            assert wanted is not None
            assert example.ids.tolist() == wanted[0]
            answers = [message.content for message in dialogues()[case["dialogue"]].messages if message.role == "assistant"]
            learnt = example.ids[example.labels != IGNORE_INDEX][:-1]  # without the end of sequence
            assert tokenizer(name).decode(learnt).endswith("".join(answers))
            assert not tokenizer(name).decode(learnt[1:]).endswith("".join(answers))  # no token more than needed


def test_special_tokens_in_a_row_are_markup_where_asked_for_as_in_trl() -> None:
    for case in golden()["special"]:
        text = chatml(dialogues()[case["dialogue"]], parse_special_tokens=True)
        example = supervised(tokenizer("smollm2"), [text], samples=[0], seq_len=WHOLE).examples[0]
        assert (example.ids.tolist(), example.labels.tolist()) == (case["ids"], case["labels"]), case["dialogue"]


NEIGHBOURS_MERGE = {"special in the prompt", "special in the answer", "two in a row"}
"""Here transformers' sanitize_control_tokens encodes a special token's text apart from what stands beside it; we don't divide text."""


def test_special_tokens_in_a_row_are_text_otherwise_as_in_transformers() -> None:
    for case in golden()["special"]:
        text = chatml(dialogues()[case["dialogue"]])
        ids = supervised(tokenizer("smollm2"), [text], samples=[0], seq_len=WHOLE).examples[0].ids.tolist()
        assert ids == case["as_whole_text"], case["dialogue"]
        assert (ids != case["as_text"]) == (case["dialogue"] in NEIGHBOURS_MERGE), case["dialogue"]
        assert tokenizer("smollm2").decode(ids) == text.text


def test_a_batch_padded_with_the_end_of_sequence_keeps_its_own_ends() -> None:
    batch = golden()["batches"]
    eos = tokenizer("smollm2").eos_id
    for row, title in enumerate(batch["dialogues"]):
        example = ours("smollm2", "chatml", dialogues()[title], None).examples[0]
        length = sum(batch["padded"]["attention_mask"][row])
        assert example.ids.tolist() == batch["padded"]["input_ids"][row][:length]
        assert example.labels.tolist() == batch["padded"]["labels"][row][:length]
        assert example.labels[-1] == eos
        assert set(batch["padded"]["input_ids"][row][length:]) <= {eos}


def test_packed_rows_are_those_of_trl_laid_end_to_end() -> None:
    batch = golden()["batches"]
    examples = [ours("smollm2", "chatml", dialogues()[title], None).examples[0] for title in batch["dialogues"]]
    assert np.concatenate([example.ids for example in examples]).tolist() == batch["packed"]["input_ids"]
    assert np.concatenate([example.labels for example in examples]).tolist() == batch["packed"]["labels"]


def test_the_golden_file_says_who_made_it_and_has_enough() -> None:
    assert set(golden()["made_with"]) == {"transformers", "trl", "tokenizers", "datasets"}
    assert len({case["dialogue"] for case in golden()["cases"]}) >= 40
    assert {case["mode"] for case in golden()["cases"]} == set(SIDES)


def test_the_small_tokenizers_have_a_true_token_with_id_0_and_merge_across_borders() -> None:
    across = tokenizer("across")
    assert across.decode([0]) not in across.special_tokens
    user, answer = dialogues()["answer begins with a colon"].messages
    text = rendered("across", "bare", dialogues()["answer begins with a colon"])
    assert text.text == user.content + answer.content
    straddling = [row for row in dialogues().values() if first_border_token(row)]
    assert straddling


def first_border_token(row: Row) -> bool:
    """Whether a token holds characters on both sides of the first answer's beginning."""
    encoded = tokenizer("across").encode_batch([rendered("across", "bare", row)])[0]
    start = len(row.messages[0].content)
    if len(row.messages) != 2 or not start or not row.messages[1].content:
        return False
    return encoded.tokens_of((start - 1, start))[1] > encoded.tokens_of((start, start + 1))[0]
