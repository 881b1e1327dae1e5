"""Makes labels.json, and the two small tokenizers beside it: ids, labels and masks by transformers' and TRL's own code.

Run: python tests/contract/data/golden/make_labels_golden.py SMOLLM2_FOLDER [--tokenizers]

Needs trl 1.16.0 and datasets beside transformers. --tokenizers trains the small tokenizers anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from golden_dialogues import DIALOGUES, SPECIAL, Dialogue
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

HERE = Path(__file__).parent
SEQ_LEN = 48
K = 16

CHATML = (
    "{% for message in messages %}{{ '' if loop.first else '\\n' }}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{{ '\\n<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
"""What contract.data.text.chatml writes."""

BRACKETS = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "  {%- if message.role == 'assistant' %}\n"
    "    {%- generation %}{{ ' ' + message.content | trim + eos_token }}{%- endgeneration %}\n"
    "  {%- else %}{{ '[' + message.role + '] ' + message.content | trim + ' [/' + message.role + ']' }}{%- endif %}\n"
    "{%- endfor %}\n"
)
"""In the manner of Llama 2's: trimmed, no header of its own for the assistant, a first token."""

BARE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
"""No markup at all: borders wherever tokens merge."""


def train_tokenizers() -> None:
    """Two small BPE tokenizers: one as Llama's (Metaspace, byte fallback, a first <s>), one over bytes that merges across words."""
    texts = [message["content"] for dialogue in DIALOGUES.values() for message in dialogue]
    texts += [f"[user] {text} [/user] assistant\n{text}" for text in texts]
    llama = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    llama.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    llama.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=420, special_tokens=special + bytes_, show_progress=False))
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(llama.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]  # byte tokens are no special ones
    save("metaspace", content, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"})

    across = tokenizers.Tokenizer(models.BPE())
    across.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    across.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    across.train_from_iterator([*texts, *("\n".join(texts[index : index + 2]) for index in range(len(texts) - 1))], trainer)
    across.add_special_tokens(["<|endoftext|>"])  # last, so that id 0 is a true token
    save("across", json.loads(across.to_str()), {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})


def save(name: str, content: dict[str, Any], config: dict[str, str]) -> None:
    """Writes a tokenizer's folder."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def by_trl(tokenizer: Any, example: dict[str, Any], *, template: str | None, seq_len: int | None, mode: str) -> tuple[Any, Any]:
    """TRL's preparation of a data set, with a data set of one example: ids and labels; None where TRL drops it."""
    conversation = "messages" in example
    trainer = SimpleNamespace(chat_template=template, _tokenizer=tokenizer, completion_only_loss=not conversation)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=conversation,
        max_length=seq_len,
        truncation_mode=mode,
        shuffle_dataset=False,
    )
    done = SFTTrainer._prepare_dataset(trainer, Dataset.from_list([example]), tokenizer, args, False, None, "golden")
    rows = list(done)
    return (rows[0]["input_ids"], rows[0]["labels"]) if rows else (None, None)


def by_masks(tokenizer: Any, dialogue: Dialogue, template: str | None) -> tuple[Any, Any]:
    """A template without {% generation %}: TRL's completion mask for each assistant turn, joined."""
    ids, labels = [], []
    for index, message in enumerate(dialogue):
        if message["role"] == "assistant":
            example = {"prompt": dialogue[:index], "completion": [message]}
            ids, own = by_trl(tokenizer, example, template=template, seq_len=None, mode="keep_start")
            labels = [*labels, *own[len(labels) :]]
    return ids, labels


def cut(ids: Any, labels: Any, mode: str) -> tuple[Any, Any]:
    """TRL's truncation (sft_trainer.py, `truncate` and the filter after it)."""
    kept = slice(None, SEQ_LEN) if mode == "keep_start" else slice(-SEQ_LEN, None)
    return (ids[kept], labels[kept]) if any(label != -100 for label in labels[kept]) else (None, None)


def cases(name: str, tokenizer: Any, setups: dict[str, str | None]) -> list[dict[str, Any]]:
    """Every dialogue in every set-up, whole and truncated on either side."""
    made = []
    for setup, template in setups.items():
        for title, dialogue in DIALOGUES.items():
            for mode in (None, "keep_start", "keep_end"):
                one = labelled(tokenizer, setup, template, dialogue, mode)
                if one is not None:
                    made.append({"tokenizer": name, "setup": setup, "dialogue": title, "mode": mode, "ids": one[0], "labels": one[1]})
    return made


def labelled(tokenizer: Any, setup: str, template: str | None, dialogue: Dialogue, mode: str | None) -> tuple[Any, Any] | None:
    """One dialogue; None where the set-up has no such case, or truncation nothing to do."""
    limit, side = (None, "keep_start") if mode is None else (SEQ_LEN, mode)
    several = sum(message["role"] == "assistant" for message in dialogue) > 1
    if (setup == "bare" and mode is not None) or (setup == "plain" and several):
        return None
    if setup == "own":
        ids, labels = by_masks(tokenizer, dialogue, template)
        done = (ids, labels) if mode is None else cut(ids, labels, side)
    elif setup == "plain":
        *before, answer = [message["content"] for message in dialogue]
        example = {"prompt": "".join(f"{text}\n" for text in before), "completion": answer}
        ids, _ = by_trl(tokenizer, example, template=None, seq_len=None, mode=side)
        done = by_trl(tokenizer, example, template=None, seq_len=limit, mode=side)
    elif setup == "last_k":
        ids = tokenizer("\n".join(message["content"] for message in dialogue))["input_ids"]
        if mode == "keep_start" or len(ids) < 2:
            return None
        labels = [-100] * (len(ids) - K) + ids[-K:]
        done = (ids, labels) if mode is None else cut(ids, labels, side)
    else:
        try:
            ids, labels = by_trl(tokenizer, {"messages": dialogue}, template=template, seq_len=None, mode=side)
        except RuntimeError:  # TRL ends the run over one dialogue without an assistant's token
            ids = tokenizer.apply_chat_template(dialogue, chat_template=template)["input_ids"]
            return (None, None) if mode is None else None
        done = (ids, labels) if mode is None else by_trl(tokenizer, {"messages": dialogue}, template=template, seq_len=limit, mode=side)
    return None if mode is not None and len(ids) <= SEQ_LEN else done


def special_cases(tokenizer: Any) -> list[dict[str, Any]]:
    """Special tokens in a row's text: as markup (TRL), and as text (transformers' sanitize_control_tokens)."""
    made = []
    for title, dialogue in SPECIAL.items():
        ids, labels = by_trl(tokenizer, {"messages": dialogue}, template=CHATML, seq_len=None, mode="keep_start")
        as_text = tokenizer.apply_chat_template(dialogue, chat_template=CHATML, sanitize_control_tokens=True)["input_ids"]
        whole = as_whole_text(tokenizer, dialogue)
        made.append({"dialogue": title, "ids": ids, "labels": labels, "as_text": as_text, "as_whole_text": whole})
    return made


def as_whole_text(tokenizer: Any, dialogue: Dialogue) -> list[int]:
    """ChatML's own tokens as they are, and all that lies between two of them by transformers' `split_special_tokens`, undivided.

    sanitize_control_tokens encodes a special token's text apart from what stands beside it, so that nothing merges there.
    """
    ids = []
    for index, message in enumerate(dialogue):
        start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        inner = tokenizer(f"{message['role']}\n{message['content']}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        between = tokenizer("\n", add_special_tokens=False)["input_ids"] if index else []
        ids += [*between, start, *inner, end]
    return ids


def batches(tokenizer: Any) -> dict[str, Any]:
    """A padded batch, pad = eos, and TRL's packed one, whose first token of a row carries no loss."""
    rows = []
    for title in ("plain", "empty answer", "four turns", "emoji last"):
        ids, labels = by_trl(tokenizer, {"messages": DIALOGUES[title]}, template=CHATML, seq_len=None, mode="keep_start")
        rows.append({"dialogue": title, "input_ids": ids, "labels": labels})
    examples = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    padded = DataCollatorForLanguageModeling(pad_token_id=tokenizer.eos_token_id)(examples)
    whole = {
        "input_ids": [index for row in examples for index in row["input_ids"]],
        "labels": [label for row in examples for label in row["labels"]],
        "seq_lengths": [len(row["input_ids"]) for row in examples],
    }
    packed = DataCollatorForLanguageModeling(pad_token_id=tokenizer.eos_token_id, padding_free=True)([whole])
    plain = {name: value.tolist() for name, value in padded.items() if isinstance(value, torch.Tensor)}
    flat = {name: packed[name].tolist()[0] for name in ("input_ids", "labels", "position_ids")}
    return {"dialogues": [row["dialogue"] for row in rows], "padded": plain, "packed": flat}


def main() -> None:
    """Writes labels.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("smollm2", type=Path)
    parser.add_argument("--tokenizers", action="store_true")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    if arguments.tokenizers:
        train_tokenizers()
    own = transformers.AutoTokenizer.from_pretrained(arguments.smollm2)
    metaspace = transformers.PreTrainedTokenizerFast.from_pretrained(HERE / "metaspace")
    across = transformers.PreTrainedTokenizerFast.from_pretrained(HERE / "across")
    made = [
        *cases("smollm2", own, {"chatml": CHATML, "own": None, "bare": BARE, "plain": None, "last_k": None}),
        *cases("metaspace", metaspace, {"brackets": BRACKETS, "bare": BARE, "plain": None, "last_k": None}),
        *cases("across", across, {"bare": BARE, "plain": None, "last_k": None}),
    ]
    made_with = {module.__name__: module.__version__ for module in (transformers, trl, tokenizers, datasets)}
    head = {"made_with": made_with, "seq_len": SEQ_LEN, "k": K, "templates": {"chatml": CHATML, "brackets": BRACKETS, "bare": BARE}}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    lines += [f'"special": {rows(special_cases(own))}', f'"batches": {json.dumps(batches(own))}', f'"cases": {rows(made)}']
    (HERE / "labels.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def rows(values: list[dict[str, Any]]) -> str:
    """JSON with one entry a line."""
    return "[\n" + ",\n".join(json.dumps(value, separators=(",", ":")) for value in values) + "\n]"


if __name__ == "__main__":
    main()
