"""Will it fit: the memory that a run holds at its peak, by share, from the contract, the layout and what the stack declares.

    peak = process + weights + max(loading, residue + adapter + gradients + optimizer + activations + logits)

All of it in bytes; a float32 value has 4. B batch_size, T = S seq_len, the other letters as in contract/worker/taps.py.

    weights      embedding, head, norms and biases, and linears that are not in NF4, in the compute dtype; NF4 with absmax
    loading      loading * (all weights in float32): weights on their way into the graph
    residue      residue * (linears in float32) where they became NF4: memory that the allocator does not give back
    adapter      A [R, in] and B [out, R] of every linear that has LoRA, float32, 1 + adapter copies
    gradients    as many values, once
    optimizer    m and v of each of them: 8 bytes; in 8 bits 2, and a float32 scale for each 256 values of either
    activations  num_hidden_layers * (sum of activations) + (sum of work) + slices of a block's linears
    logits       logits * min(B T V, max(chunk, V)) + slices of the head + panels * V D

Where that does not fit, a stack that `recomputes` keeps of each layer one [B, T, D], and computes the rest again: its activations become
work, of one layer.

NF4 is half a byte a value and, for each block, a float32 absmax; with double quantisation a byte, and a float32 for each 256 blocks
(arXiv:2305.14314, section 3). The coefficients are a stack's own, measured (contract.worker.capabilities.Memory).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from contract.model.layout import GPT2Layout, Layout
from contract.run.spec import AdapterSpec, ComputeDtype, FineTuneContract, QuantSpec
from contract.worker.capabilities import Memory, Slices

FLOAT32 = 4
ITEMSIZE: Mapping[ComputeDtype, int] = MappingProxyType({"float32": FLOAT32, "bfloat16": 2})
IN_A_LAYER = re.compile(r"layers\.(0|[1-9][0-9]{0,9})\.(.+)", re.ASCII)
"""One linear of one layer in rank_pattern and alpha_pattern, such as layers.3.q_proj."""

NESTED_BLOCK_SIZE = 256
"""Blocks of absmax that share one nested absmax, and values that share one scale in an 8-bit optimiser's state."""


class Estimate(BaseModel):
    """Bytes of each share at the peak; `loading` is what opening takes beyond the shares of the run that come after it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    process: int
    weights: int
    residue: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    loading: int

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self.shares().values())

    def shares(self) -> dict[str, int]:
        """Each share by its name."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def estimate(layout: Layout, contract: FineTuneContract, memory: Memory) -> Estimate:
    """The peak of a full causal run on the device and in the compute dtype that `memory` is of."""
    run, itemsize = contract.exec, ITEMSIZE[memory.dtype]
    linears, others = linear_values(layout), other_values(layout)
    arriving = FLOAT32 * (linears + others)
    if layout.tie_word_embeddings and memory.head_apart:
        others += layout.vocab_size * layout.hidden_size
    if contract.quant.base == "none":
        held = itemsize * linears
    else:
        held = nf4_bytes(layout, contract.quant)
    trained = adapter_values(layout, contract.adapter)
    sizes = dimensions(layout, contract)
    activations = layout.num_hidden_layers * _bytes(memory.activations, sizes) + _bytes(memory.work, sizes)
    in_head, in_linears = slice_bytes(layout, memory.slices, sizes)
    shares = {
        "residue": 0 if contract.quant.base == "none" else round(memory.residue * FLOAT32 * linears),
        "adapter": round((1 + memory.adapter) * FLOAT32 * trained),
        "gradients": FLOAT32 * trained,
        "optimizer": optimizer_bytes(trained, run.optimizer),
        "activations": round(activations + in_linears),
        "logits": round(FLOAT32 * (memory.logits * logits_at_once(memory, sizes) + memory.panels * sizes["V"] * sizes["D"]) + in_head),
    }
    return Estimate(
        process=memory.process,
        weights=itemsize * others + held,
        loading=max(0, round(memory.loading * arriving) - sum(shares.values())),
        **shares,
    )


def fitting(layout: Layout, contract: FineTuneContract, memory: Memory, allowed: float | None) -> tuple[Estimate, bool]:
    """The estimate, and whether blocks are computed again: where the peak is over what is allowed, and the stack recomputes.

    Args:
        allowed: bytes; None: not known.
    """
    usual = estimate(layout, contract, memory)
    if allowed is None or usual.total <= allowed or not memory.recomputes:
        return usual, False
    work = {product: memory.activations.get(product, 0) + memory.work.get(product, 0) for product in {**memory.activations, **memory.work}}
    return estimate(layout, contract, memory.model_copy(update={"activations": {"BTD": 1.0}, "work": work})), True


def logits_at_once(memory: Memory, sizes: dict[str, int]) -> int:
    """Logits that are computed at once."""
    every = math.prod(sizes[letter] for letter in "BTV")
    return every if memory.chunk is None else min(every, max(memory.chunk, sizes["V"]))


def linear_values(layout: Layout) -> int:
    """Weights of all linears of all blocks."""
    return layout.num_hidden_layers * sum(math.prod(shape) for shape in layout.widths.values())


def other_values(layout: Layout) -> int:
    """All other weights: embedding, positions, an untied head, norms, biases."""
    hidden = layout.hidden_size
    table = layout.vocab_size * hidden
    block = 2 * hidden + sum(layout.widths[name][0] for name in layout.biased) + len(layout.head_norms) * layout.head_dim
    values = table * (1 if layout.tie_word_embeddings else 2) + layout.num_hidden_layers * block + hidden
    if isinstance(layout, GPT2Layout):  # learned positions; each norm has a bias
        values += layout.max_position_embeddings * hidden + (2 * layout.num_hidden_layers + 1) * hidden
    return values


def nf4_bytes(layout: Layout, quant: QuantSpec) -> int:
    """Bytes of all linears' codes and absmax."""
    size = 0
    for out_features, in_features in layout.widths.values():
        values = out_features * in_features
        blocks = -(-values // quant.block_size)
        absmax = blocks + FLOAT32 * (-(-blocks // NESTED_BLOCK_SIZE) + 1) if quant.double_quant else FLOAT32 * blocks
        size += (values + 1) // 2 + absmax
    return layout.num_hidden_layers * size


def adapter_values(layout: Layout, adapter: AdapterSpec) -> int:
    """Values of A and B: rank (in + out) of every linear that has LoRA; rank_pattern's own rank where it names the linear."""
    values = 0
    for name in adapter.target_modules or layout.linears:
        if name not in layout.widths:
            continue  # refused by the gate target_modules
        usual = adapter.rank_pattern.get(name, adapter.rank)
        ranks = layout.num_hidden_layers * usual
        for key, rank in adapter.rank_pattern.items():  # not layer by layer: config.json may speak of two billion
            match = IN_A_LAYER.fullmatch(key)
            if match is not None and match[2] == name and int(match[1]) < layout.num_hidden_layers:
                ranks += rank - usual
        values += ranks * sum(layout.widths[name])
    return values


def optimizer_bytes(values: int, optimizer: str) -> int:
    """Bytes of m and v."""
    if optimizer == "adamw":
        return 2 * FLOAT32 * values
    return 2 * (values + FLOAT32 * -(-values // NESTED_BLOCK_SIZE))


def slice_bytes(layout: Layout, slices: Slices | None, sizes: dict[str, int]) -> tuple[float, float]:
    """Bytes of the head's slices, and of those of all linears of a block (contract.worker.capabilities.Slices)."""
    if slices is None:
        return 0.0, 0.0
    head, *linears = (
        in_features * (out_features // common if (common := math.gcd(out_features, slices.size)) >= slices.smallest else 0)
        for out_features, in_features in ((layout.vocab_size, layout.hidden_size), *layout.widths.values())
    )
    values = FLOAT32 * sizes["B"] * sizes["T"]
    return slices.head * values * head, slices.linears * values * sum(linears)


def dimensions(layout: Layout, contract: FineTuneContract) -> dict[str, int]:
    """Each letter's size."""
    return {
        "B": contract.exec.batch_size, "T": contract.exec.seq_len, "S": contract.exec.seq_len,
        "D": layout.hidden_size, "F": layout.intermediate_size, "V": layout.vocab_size, "H": layout.num_attention_heads,
        "Q": layout.num_attention_heads * layout.head_dim, "N": layout.num_key_value_heads * layout.head_dim,
        "R": contract.adapter.rank,
    }  # fmt: skip


def _bytes(copies: dict[str, float], sizes: dict[str, int]) -> float:
    return FLOAT32 * sum(count * math.prod(sizes[letter] for letter in product) for product, count in copies.items())
