"""Makes parity/goldens/text.json and the tokenizers beside it: what transformers and TRL learn from rows, run by run.

    PYTHONPATH=tests/contract/data/golden python tests/parity/goldens/make_policy_text.py

Needs trl 1.16.0 and datasets 5.2.0 beside transformers. The tokenizers are those of tests/contract/data/golden; one of them has ChatML's
special tokens added. Rows of which transformers stops at the first of several tokens of an answer's last character are left out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import trl
from golden_dialogues import DIALOGUES
from make_labels_golden import BARE, BRACKETS, CHATML, by_masks, by_trl, cut
from make_labels_golden import HERE as SMALL
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

HOME = Path(__file__).parents[3] / "parity" / "goldens"
SEQ_LEN = 48
K = 16

TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
"""As many models have it: without {% generation %}."""

SEVERAL = {"decomposed accents", "Greek and Japanese", "joined emoji", "private use", "right to left"}
"""Answers whose last character takes several tokens, where no markup follows."""

ROWS = (
    "plain", "system", "empty system", "empty prompt", "empty answer", "empty answer amid turns", "one letter", "space before the answer",
    "space after the prompt", "spaces all around", "line feeds at the borders", "only a line feed", "repeated turns",
    "the answer is in the prompt", "the answer is a role's name", "the answer is the header", "four turns", "ragged turns",
    "emoji across the border", "almost special", "long prompt", "long answer", "long both", "answer begins with a colon",
    "answer completes the word", "many short turns", "joined emoji", "right to left",
)  # fmt: skip

RUNS: tuple[tuple[str, str, str | None], ...] = (
    ("chatml", "turns", None), ("chatml", "turns", "keep_start"), ("chatml", "turns", "keep_end"),
    ("brackets", "metaspace", None), ("brackets", "metaspace", "keep_start"), ("bare", "across", None),
    ("turns", "turns", "keep_end"), ("last_k", "metaspace", None), ("last_k", "metaspace", "keep_end"),
)  # fmt: skip
"""(set-up, tokenizer, what truncation keeps)."""

TEMPLATES = {"chatml": CHATML, "brackets": BRACKETS, "bare": BARE, "turns": TURNS}
IN_BATCHES = ("plain", "empty answer", "four turns", "emoji across the border", "one letter", "space before the answer")


def copy_tokenizers() -> None:
    """The small tokenizers, and one of them with ChatML's tokens; the end of sequence is the pad."""
    for name in ("metaspace", "across"):
        shutil.copytree(SMALL / name, HOME / name, dirs_exist_ok=True)
    library = tokenizers.Tokenizer.from_file(str(SMALL / "across" / "tokenizer.json"))
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    (HOME / "turns").mkdir(exist_ok=True)
    library.save(str(HOME / "turns" / "tokenizer.json"))
    config = json.loads((SMALL / "across" / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (HOME / "turns" / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def labelled(tokenizer: Any, setup: str, title: str, mode: str | None) -> tuple[Any, Any]:
    """Ids and labels of a dialogue; None where nothing of it is to be learned."""
    dialogue, limit, side = DIALOGUES[title], None if mode is None else SEQ_LEN, mode or "keep_start"
    if setup == "last_k":
        ids = tokenizer("\n".join(message["content"] for message in dialogue))["input_ids"]
        labels = [-100] * (len(ids) - K) + ids[-K:]
        return (ids, labels) if mode is None else cut(ids, labels, side)
    if setup == "turns":
        ids, labels = by_masks(tokenizer, dialogue, TURNS)
        return (ids, labels) if mode is None else cut(ids, labels, side)
    try:
        return by_trl(tokenizer, {"messages": dialogue}, template=TEMPLATES[setup], seq_len=limit, mode=side)
    except RuntimeError:  # TRL ends the run over one dialogue without an assistant's token
        assert mode is None
        ids = tokenizer.apply_chat_template(dialogue, chat_template=TEMPLATES[setup])["input_ids"]
        return ids, [-100] * len(ids)


def spans(labels: list[int]) -> list[list[int]]:
    """[first, end) of what is learned."""
    found: list[list[int]] = []
    for at, label in enumerate(labels):
        if label == -100:
            continue
        if found and found[-1][1] == at:
            found[-1][1] = at + 1
        else:
            found.append([at, at + 1])
    return found


def run(tokenizer: Any, setup: str, name: str, mode: str | None) -> dict[str, Any]:
    """One run: every row's ids and what of them is learned, or null."""
    titles = [title for title in ROWS if not (setup == "bare" and title in SEVERAL)]
    rows = []
    for title in titles:
        ids, labels = labelled(tokenizer, setup, title, mode)
        assert ids is None or all(label in (-100, index) for index, label in zip(ids, labels, strict=True))
        rows.append({"dialogue": title, "ids": ids, "learned": None if ids is None else spans(labels)})
    return {"setup": setup, "tokenizer": name, "keeps": mode, "rows": rows}


def batches(tokenizer: Any) -> dict[str, Any]:
    """TRL's collator on ChatML rows: a padded batch, pad = eos, and one without padding, whose positions begin anew with each row."""
    rows = [labelled(tokenizer, "chatml", title, None) for title in IN_BATCHES]
    examples = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    padded = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(examples)
    whole = {
        "input_ids": [index for ids, _ in rows for index in ids],
        "labels": [label for _, labels in rows for label in labels],
        "seq_lengths": [len(ids) for ids, _ in rows],
    }
    packed = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=True)([whole])
    plain = {name: value.tolist() for name, value in padded.items() if isinstance(value, torch.Tensor)}
    flat = {name: packed[name].tolist()[0] for name in ("input_ids", "labels", "position_ids")}
    return {"dialogues": IN_BATCHES, "pad": tokenizer.pad_token_id, "padded": plain, "packed": flat}


def lines(values: list[Any]) -> str:
    """JSON with one entry a line."""
    return "[\n" + ",\n".join(json.dumps(value, separators=(",", ":")) for value in values) + "\n]"


def main() -> None:
    """Writes everything."""
    datasets.disable_progress_bars()
    copy_tokenizers()
    read = {name: transformers.PreTrainedTokenizerFast.from_pretrained(HOME / name) for name in ("turns", "metaspace", "across")}
    runs = [run(read[name], setup, name, mode) for setup, name, mode in RUNS]
    made_with = {module.__name__: module.__version__ for module in (transformers, trl, tokenizers, datasets)}
    head = {"made_with": made_with, "seq_len": SEQ_LEN, "k": K, "templates": TEMPLATES, "batches": batches(read["turns"])}
    written = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    dialogues = json.dumps({title: DIALOGUES[title] for title in ROWS}, indent=0)
    whole = [
        json.dumps({key: one[key] for key in ("setup", "tokenizer", "keeps")})[:-1] + f', "rows": {lines(one["rows"])}}}' for one in runs
    ]
    written += [f'"dialogues": {dialogues}', '"runs": [\n' + ",\n".join(whole) + "\n]"]
    (HOME / "text.json").write_text("{\n" + ",\n".join(written) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
