"""A LoRA adapter in memory: what every adapter format is read into and written from.

    y = W x + s B (A x),    s = alpha / rank, or alpha / sqrt(rank) with rslora        arXiv:2106.09685, 2312.03732

A linear goes by a logical name, such as layers.0.q_proj (contract/worker/graph.py); older files have mid0 .. and lm_head. Where its
weight lies in the base checkpoint is its place. Legend: R rank, I in_features, O out_features.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from contract.artifacts.record import Record
from contract.errors import ContractError, brief
from contract.run.spec import Base, Graph, Method

LOGICAL = r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,254}[A-Za-z0-9_])?$"
KEY = r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,510}[A-Za-z0-9_])?$"
MAX_LINEARS = 100_000
MAX_RANK = 65536
MAX_ALPHA = 1e9

_CONV1D = re.compile(r"(transformer\.)?h\.[0-9]+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_REMEDY = "correct the adapter"


class Quant(Record):
    """How the base was held while the adapter was trained; `double_quant` and `block_size` are None where that is not known."""

    base_quant: Base
    double_quant: bool | None = None
    block_size: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a linear's weight lies: a checkpoint's key, and in a fused weight the output feature that it begins at."""

    key: str
    offset: int | None = None

    @property
    def transposed(self) -> bool:
        """Whether the checkpoint has the weight as [in, out]: GPT-2's Conv1D, whose square c_proj no shape tells apart."""
        return _CONV1D.fullmatch(self.key) is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A LoRA adapter.

    Attributes:
        matrices: logical -> (A [R, I], B [O, R]), float32, finite.
        places: logical -> where the base's weight lies.
        layer_order: every logical once, in the order of computation.
        rank, alpha: the usual ones; a linear's own rank is its A's, its own alpha is in alpha_pattern.
        method, quant: how it was trained; quant is None where that is not known.
        embed_key, vocab, d_model, base_model: of the base; None where not known.
        graph: None where not known.
        allow_placeholder_attention_merge: what is made of it must not claim the fidelity of a full attention merge.

    Raises:
        ContractError: anything else than that.
    """

    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]
    places: Mapping[str, Place]
    layer_order: tuple[str, ...]
    rank: int
    alpha: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    method: Method = "qlora"
    quant: Quant | None = None
    embed_key: str | None = None
    vocab: int | None = None
    d_model: int | None = None
    base_model: str | None = None
    graph: Graph | None = None
    allow_placeholder_attention_merge: bool = False
    adapter_tag: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.matrices) <= MAX_LINEARS:
            raise _refused("adapter", f"{len(self.matrices)} linears", f"1 to {MAX_LINEARS:,}")
        if len(set(self.layer_order)) != len(self.layer_order) or set(self.layer_order) != set(self.matrices):
            raise _refused("layer_order", _difference(self.layer_order, self.matrices), "every linear once")
        if set(self.places) != set(self.matrices):
            raise _refused("base_key_map", _difference(self.places, self.matrices), "a key for every linear, and no other")
        for logical, (a, b) in self.matrices.items():
            _require_matrices(logical, a, b)
        strange = set(self.alpha_pattern) - set(self.matrices)
        if strange:
            raise _refused("alpha_pattern", brief(min(strange)), "a linear that the adapter has")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not 0 < alpha <= MAX_ALPHA:
                raise _refused("alpha", brief(alpha), f"over 0, {MAX_ALPHA:g} at most")
        if not 0 < self.rank <= MAX_RANK:
            raise _refused("rank", brief(self.rank), f"1 to {MAX_RANK}")
        # One spelling of each adapter, so that equal ones compare equal: no exception that is none.
        own = {logical: float(alpha) for logical, alpha in sorted(self.alpha_pattern.items()) if alpha != self.alpha}
        object.__setattr__(self, "alpha_pattern", own)
        object.__setattr__(self, "alpha", float(self.alpha))

    def rank_of(self, logical: str) -> int:
        """A linear's rank."""
        return int(self.matrices[logical][0].shape[0])

    def alpha_of(self, logical: str) -> float:
        """A linear's alpha."""
        return self.alpha_pattern.get(logical, self.alpha)

    def scale(self, logical: str) -> float:
        """s in float64: alpha / R, or alpha / sqrt(R) with rslora, each operation rounded once."""
        rank = self.rank_of(logical)
        return self.alpha_of(logical) / (math.sqrt(rank) if self.rslora else rank)

    def rank_pattern(self) -> dict[str, int]:
        """The linears whose rank is not the usual one."""
        return {logical: self.rank_of(logical) for logical in sorted(self.matrices) if self.rank_of(logical) != self.rank}

    @property
    def claims_full_attention_fidelity(self) -> bool:
        """Whether a merge of it may be called a full attention merge: only one trained on the full graph, and not marked otherwise."""
        return self.graph == "full_causal" and not self.allow_placeholder_attention_merge

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        mine, theirs = dict(vars(self)), dict(vars(other))
        one, two = mine.pop("matrices"), theirs.pop("matrices")
        return mine == theirs and one.keys() == two.keys() and all(_bits(one[name]) == _bits(two[name]) for name in one)


def _bits(pair: tuple[np.ndarray, np.ndarray]) -> tuple[object, ...]:
    return tuple((matrix.shape, matrix.dtype, matrix.tobytes()) for matrix in pair)


def _require_matrices(logical: str, a: np.ndarray, b: np.ndarray) -> None:
    if not re.fullmatch(LOGICAL[1:-1], logical):
        raise _refused(brief(logical), "that name", "letters, digits, _, - and dots")
    for name, matrix in ((f"{logical}.lora_a", a), (f"{logical}.lora_b", b)):
        if matrix.dtype != np.float32 or matrix.ndim != 2 or not matrix.size:
            raise _refused(name, f"{matrix.dtype.name}{list(matrix.shape)}", "a float32 matrix")
        if not np.isfinite(matrix).all():
            raise _refused(name, "NaN or infinity", "finite values")
    if a.shape[0] != b.shape[1]:
        raise _refused(logical, f"A {list(a.shape)} and B {list(b.shape)}", "A [rank, in] and B [out, rank] of one rank")


def _difference(got: Mapping[str, object] | tuple[str, ...], wanted: Mapping[str, object]) -> str:
    counts = Counter(got)
    twice = sorted(name for name, count in counts.items() if count > 1)
    missing, strange = sorted(set(wanted) - set(counts)), sorted(set(counts) - set(wanted))
    parts = [f"{what} {brief(them[0])}" for what, them in (("twice", twice), ("no", missing), ("an unknown", strange)) if them]
    return ", ".join(parts)


def _refused(place: str, got: str, allowed: str) -> ContractError:
    return ContractError(place, got=got, allowed=allowed, remedy=_REMEDY)
