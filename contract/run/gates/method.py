"""Method, base and the options of the adapter and the run, against what the stack declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from contract.run.facts import Facts, Refusal
from contract.run.spec import Base, Method


def qlora_base(facts: Facts) -> Refusal | None:
    """QLoRA is LoRA on a quantised base (arXiv:2305.14314)."""
    if facts.contract.adapter.method != "qlora" or facts.contract.quant.base != "none":
        return None
    return Refusal(
        gate="qlora_base",
        got="adapter.method qlora with quant.base none",
        allowed="qlora with quant.base nf4; lora with quant.base none",
        remedy="set quant.base to nf4, or adapter.method to lora",
    )


def method_and_base(facts: Facts) -> Refusal | None:
    """The stack takes this method on this base."""
    method, base = facts.contract.adapter.method, facts.contract.quant.base
    if facts.training is None or base in facts.training.bases.get(method, ()) or (method, base) == ("qlora", "none"):
        return None
    allowed = _pairs(facts.training.bases)
    others = [
        name
        for name, capabilities in facts.stacks.items()
        if capabilities.training is not None and base in capabilities.training.bases.get(method, ())
    ]
    remedy = "change adapter.method or quant.base" + (f", or take stack {' or '.join(others)}" if others else "")
    return Refusal(
        gate="method_and_base", got=f"{method} on base {base}", allowed=f"stack {facts.stack}: {allowed or 'none'}", remedy=remedy
    )


def nf4_block_size(facts: Facts) -> Refusal | None:
    """The stack has NF4 of this block size."""
    quant = facts.contract.quant
    if facts.capabilities is None or quant.base != "nf4" or not facts.capabilities.nf4_block_sizes:
        return None
    sizes = facts.capabilities.nf4_block_sizes
    if quant.block_size in sizes:
        return None
    return _not_taken(facts, "nf4_block_size", f"quant.block_size {quant.block_size}", sizes, "set quant.block_size to one of them")


def graph(facts: Facts) -> Refusal | None:
    """The stack has the graph."""
    if facts.training is None or facts.contract.graph in facts.training.graphs:
        return None
    return _not_taken(facts, "graph", f"graph {facts.contract.graph}", facts.training.graphs, "change graph, or take another stack")


def compute_dtype(facts: Facts) -> Refusal | None:
    """The stack computes in this dtype."""
    wanted = facts.contract.exec.compute_dtype
    if facts.training is None or wanted in facts.training.compute_dtypes:
        return None
    return _not_taken(facts, "compute_dtype", f"exec.compute_dtype {wanted}", facts.training.compute_dtypes, "set exec.compute_dtype so")


def optimizer(facts: Facts) -> Refusal | None:
    """The stack has the optimiser, on this device."""
    wanted, device = facts.contract.exec.optimizer, facts.contract.exec.device
    if facts.training is None:
        return None
    there = [name for name in facts.training.optimizers if device in facts.training.optimizer_devices.get(name, (device,))]
    if wanted in there:
        return None
    return _not_taken(facts, "optimizer", f"exec.optimizer {wanted} on {device}", there, "set exec.optimizer so")


def dropout(facts: Facts) -> Refusal | None:
    """The stack drops inputs of A, where that is asked for."""
    wanted = facts.contract.adapter.dropout
    if facts.training is None or facts.training.dropout or wanted == 0:
        return None
    return _not_taken(facts, "dropout", f"adapter.dropout {wanted:g}", ("0",), "set adapter.dropout to 0")


def packing(facts: Facts) -> Refusal | None:
    """The stack packs rows, where that is asked for."""
    if facts.training is None or facts.training.packing or not facts.contract.exec.packing:
        return None
    return _not_taken(facts, "packing", "exec.packing true", ("false",), "set exec.packing to false")


def patterns(facts: Facts) -> Refusal | None:
    """The stack has ranks and alphas for single linears, where they are asked for."""
    adapter = facts.contract.adapter
    named = [name for name in ("rank_pattern", "alpha_pattern") if getattr(adapter, name)]
    if facts.training is None or facts.training.patterns or not named:
        return None
    got = ", ".join(f"adapter.{name} for {', '.join(getattr(adapter, name))}" for name in named)
    return _not_taken(
        facts, "patterns", got, ("one rank and one alpha for all",), "leave adapter.rank_pattern and adapter.alpha_pattern out"
    )


def tokenizer(facts: Facts) -> Refusal | None:
    """The stack takes text of this tokenizer."""
    wanted = facts.contract.data.tokenizer_mode
    if facts.training is None or wanted in facts.training.tokenizers or (facts.contract.adapter.method, wanted) == ("qlora", "vox"):
        return None
    return _not_taken(facts, "tokenizer", f"data.tokenizer_mode {wanted}", facts.training.tokenizers, "set data.tokenizer_mode so")


def _pairs(bases: Mapping[Method, tuple[Base, ...]]) -> str:
    return "; ".join(f"{method} on {' or '.join(taken)}" for method, taken in bases.items() if taken)


def _not_taken(facts: Facts, gate: str, got: str, allowed: Iterable[object], remedy: str) -> Refusal:
    """The refusal of a value that the stack does not take."""
    values = ", ".join(map(str, allowed)) or "nothing of the kind"
    return Refusal(gate=gate, got=got, allowed=f"stack {facts.stack}: {values}", remedy=remedy)


GATES = (
    qlora_base, method_and_base, nf4_block_size, graph, compute_dtype, optimizer, dropout, packing, patterns, tokenizer,
)  # fmt: skip
