"""Text and labels, and how many steps they make."""

from __future__ import annotations

from contract.data.vox import VoxTokenizer
from contract.run.facts import Facts, Refusal


def qlora_tokenizer(facts: Facts) -> Refusal | None:
    """QLoRA goes with the model's own tokenizer."""
    if facts.contract.adapter.method != "qlora" or facts.contract.data.tokenizer_mode == "hf":
        return None
    return Refusal(
        gate="qlora_tokenizer",
        got=f"adapter.method qlora with data.tokenizer_mode {facts.contract.data.tokenizer_mode}",
        allowed="qlora with tokenizer_mode hf",
        remedy="set data.tokenizer_mode to hf, or adapter.method to lora",
    )


def vox_ids(facts: Facts) -> Refusal | None:
    """The model has an embedding for each of the vox table's ids."""
    if facts.layout is None or facts.contract.data.tokenizer_mode != "vox" or facts.layout.vocab_size >= VoxTokenizer.vocab_size:
        return None
    return Refusal(
        gate="vox_ids",
        got=f"tokenizer vox, whose ids are 0 to {VoxTokenizer.vocab_size - 1}, with a model of vocab_size {facts.layout.vocab_size}",
        allowed=f"vocab_size {VoxTokenizer.vocab_size} or more",
        remedy="take tokenizer_mode hf, or a model with a larger vocabulary",
    )


def chat_template(facts: Facts) -> Refusal | None:
    """The model's own chat template renders dialogues, with the model's own tokenizer, for an objective that has dialogues."""
    contract = facts.contract
    if contract.data.template != "tokenizer":
        return None
    wrong = [f"objective {contract.objective}"] if contract.objective != "chatml_supervised" else []
    wrong += [f"data.tokenizer_mode {contract.data.tokenizer_mode}"] if contract.data.tokenizer_mode != "hf" else []
    if not wrong:
        return None
    return Refusal(
        gate="chat_template",
        got=f"data.template tokenizer with {' and '.join(wrong)}",
        allowed="template tokenizer with objective chatml_supervised and tokenizer_mode hf",
        remedy="set data.template to chatml, or the others to what it needs",
    )


def own_template(facts: Facts) -> Refusal | None:
    """The model has a chat template, where its own is asked for."""
    if facts.has_template is not False:
        return None
    return Refusal(
        gate="own_template",
        got="data.template tokenizer, and no chat template beside tokenizer.json",
        allowed="chat_template in tokenizer_config.json, or chat_template.jinja",
        remedy="set data.template to chatml, or put the template there",
    )


def last_k(facts: Facts) -> Refusal | None:
    """The last K positions each have a token before them to be predicted from."""
    contract = facts.contract
    k, seq_len = contract.exec.ce_last_k, contract.exec.seq_len
    if contract.objective != "last_k" or k < seq_len:
        return None
    return Refusal(
        gate="last_k",
        got=f"exec.ce_last_k {k:,} with exec.seq_len {seq_len:,}",
        allowed=f"ce_last_k up to {seq_len - 1:,}: the first token is not predicted",
        remedy="lower ce_last_k, or raise seq_len",
    )


def last_k_truncation(facts: Facts) -> Refusal | None:
    """A row that is too long keeps its end, where its last positions are."""
    if facts.contract.objective != "last_k" or facts.contract.data.truncation == "left":
        return None
    return Refusal(
        gate="last_k_truncation",
        got="data.truncation right with objective last_k",
        allowed="left with objective last_k; either with chatml_supervised",
        remedy="set data.truncation to left, or change the objective",
    )


def packed_last_k(facts: Facts) -> Refusal | None:
    """A row's last positions are at the end of a sequence, which they are not where rows are packed."""
    if facts.contract.objective != "last_k" or not facts.contract.exec.packing:
        return None
    return Refusal(
        gate="packed_last_k",
        got="exec.packing true with objective last_k",
        allowed="packing with objective chatml_supervised",
        remedy="set exec.packing to false, or change the objective",
    )


GATES = (qlora_tokenizer, vox_ids, chat_template, own_template, last_k, last_k_truncation, packed_last_k)
