"""The model: its files, its architecture, its linears, its positions."""

from __future__ import annotations

from contract.model.fit import LISTED
from contract.run.digest import run_digest
from contract.run.facts import Facts, Refusal
from contract.run.memory import IN_A_LAYER
from contract.run.proxy import middle_blocks
from contract.worker.taps import LM_HEAD, MIDDLE


def model_type(facts: Facts) -> Refusal | None:
    """The stack has the architecture under this graph."""
    if facts.training is None or facts.layout is None or facts.contract.graph not in facts.training.graphs:
        return None
    taken = facts.training.graphs[facts.contract.graph]
    if facts.layout.model_type in taken:
        return None
    return Refusal(
        gate="model_type",
        got=f"model_type {facts.layout.model_type} under graph {facts.contract.graph}",
        allowed=f"stack {facts.stack}: {', '.join(taken) or 'none'}",
        remedy="take another model or another stack",
    )


def layout_options(facts: Facts) -> Refusal | None:
    """The stack has what the model adds to the plain graph of its type; none of it is in the proxy graph."""
    if facts.training is None or facts.layout is None or facts.contract.graph == "qlora_proxy_v1":
        return None
    lacking = [option for option in facts.layout.options if option not in facts.training.layout_options]
    if not lacking:
        return None
    return Refusal(
        gate="layout_options",
        got=f"a {facts.layout.model_type} model with {', '.join(lacking)}",
        allowed=f"stack {facts.stack}: {', '.join(facts.training.layout_options) or 'the plain graph'}",
        remedy="take another model or another stack",
    )


def whole_weights(facts: Facts) -> Refusal | None:
    """The whole graph's weights are all there, and no others; the proxy graph needs its own only."""
    if facts.inspected is None or facts.contract.graph != "full_causal":
        return None
    missing, strange = facts.inspected.missing, facts.inspected.strange
    if not missing and not strange:
        return None
    got = [f"{word} {', '.join(keys[:LISTED])}" for word, keys in (("missing:", missing), ("without a place:", strange)) if keys]
    return Refusal(
        gate="whole_weights",
        got=f"a checkpoint with weights {'; '.join(got)}",
        allowed="the weights that config.json describes, all of them and no others",
        remedy="take a whole checkpoint, or the config.json that belongs to it",
    )


def target_modules(facts: Facts) -> Refusal | None:
    """The linears that are to get LoRA exist."""
    if facts.layout is None:
        return None
    strange = [name for name in facts.contract.adapter.target_modules if name not in facts.layout.linears]
    if not strange:
        return None
    return Refusal(
        gate="target_modules",
        got=f"adapter.target_modules {', '.join(strange)}",
        allowed=f"linears of a {facts.layout.model_type} block: {', '.join(facts.layout.linears)}",
        remedy="correct the names, or name none: all of them then get LoRA",
    )


def pattern_names(facts: Facts) -> Refusal | None:
    """The linears that are to get a rank or an alpha of their own exist, and have LoRA."""
    if facts.layout is None:
        return None
    adapter = facts.contract.adapter
    targets, blocks = adapter.target_modules or facts.layout.linears, facts.layout.num_hidden_layers
    outside: tuple[str, ...] = ()
    if facts.contract.graph == "qlora_proxy_v1" and facts.proxy is not None:
        blocks = middle_blocks(facts.contract.exec, expected=facts.proxy.expected, matched=facts.proxy.matched)
        targets, outside = (MIDDLE,) if blocks else (), (LM_HEAD,)
    strange = [
        f"adapter.{field} {name}" for field in ("rank_pattern", "alpha_pattern") for name in getattr(adapter, field)
        if name not in outside and not _has_lora(name, targets, blocks)
    ]  # fmt: skip
    if not strange:
        return None
    one = f", or one of them in one layer: layers.0.{targets[0]} to layers.{blocks - 1}" if targets else ""
    return Refusal(
        gate="pattern_names",
        got=", ".join(strange),
        allowed=f"linears that get LoRA ({', '.join((*targets, *outside))}){one}",
        remedy="correct the names, or leave them out",
    )


def _has_lora(name: str, targets: tuple[str, ...], layers: int) -> bool:
    match = IN_A_LAYER.fullmatch(name)
    return name in targets if match is None else int(match[1]) < layers and match[2] in targets


def tokenizer_file(facts: Facts) -> Refusal | None:
    """The tokenizer's file is there, where text goes through it."""
    data, method = facts.contract.data, facts.contract.adapter.method
    if data.tokenizer_mode != "hf" or facts.has_tokenizer is not False:
        return None
    return Refusal(
        gate="tokenizer_file",
        got=f"method {method} with tokenizer hf, and no tokenizer.json",
        allowed="a tokenizer.json in the model's folder, or named in model.tokenizer_json",
        remedy="put it there, or name it",
    )


def positions(facts: Facts) -> Refusal | None:
    """A row is no longer than the model has positions."""
    seq_len = facts.contract.exec.seq_len
    if facts.layout is None or seq_len <= facts.layout.max_position_embeddings:
        return None
    return Refusal(
        gate="positions",
        got=f"exec.seq_len {seq_len:,}",
        allowed=f"max_position_embeddings of the model, {facts.layout.max_position_embeddings:,}, at most",
        remedy="shorten seq_len: longer rows are then cut",
    )


def resume_from(facts: Facts) -> Refusal | None:
    """The checkpoint to go on from is of this very run."""
    wanted = run_digest(facts.contract)
    if facts.resumed is None or facts.resumed == wanted:
        return None
    return Refusal(
        gate="resume_from",
        got=f"exec.resume_from {facts.contract.exec.resume_from}, a checkpoint of the run {facts.resumed}",
        allowed=f"a checkpoint of this run, {wanted} (the contract's digest without resume_from)",
        remedy="take the contract that the run began with, or leave resume_from out to begin anew",
    )


GATES = (model_type, layout_options, whole_weights, target_modules, pattern_names, tokenizer_file, positions, resume_from)
