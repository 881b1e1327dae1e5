"""Several adapters on parts of one fused weight (q, k and v in GPT-2's c_attn) as one adapter on the whole.

With A stacked and B block-diagonal, B A has each part's product in its rows and zeros elsewhere, term by term the same:

    [s1 B1 A1]       [B1  0 ] [A1]
    [s2 B2 A2]  =  s [ 0  B2] [A2]        for s1 = s2 = s

Its rank R is the ranks' sum, so that alpha is chosen anew, such that alpha / R (alpha / sqrt(R) with rslora) is s, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.artifacts.adapter import Adapter
from contract.errors import ContractError

_FUSED = {"c_attn": 3}
"""Equal parts of a fused weight, by the last part of its module's name."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One pair of matrices, float32, A [R, in], B [out, R], and the alpha that goes with their rank."""

    a: np.ndarray
    b: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a.shape[0])


def fuse(adapter: Adapter, parts: Sequence[str]) -> Block:
    """One pair of matrices for the parts of a weight.

    Raises:
        ContractError: a part that is no part, parts that overlap, of unequal sizes or scales, or a weight whose size is not known.
    """
    place = adapter.places[parts[0]]
    module = place.key.removesuffix(".weight")
    where = f"base_key_map: {', '.join(parts)}"
    count = _FUSED.get(module.rpartition(".")[2])
    sizes = {adapter.matrices[part][1].shape[0] for part in parts}
    offsets = {part: adapter.places[part].offset for part in parts}
    if count is None or None in offsets.values() or len(sizes) != 1:
        raise _refused(where, f"{len(parts)} linears in {place.key}", "one; or equal parts of GPT-2's c_attn, each with its base_offset")
    size = sizes.pop()
    if len(set(offsets.values())) != len(parts) or any(
        offset is None or offset not in range(0, count * size, size) for offset in offsets.values()
    ):
        raise _refused(where, f"offsets {sorted(map(str, offsets.values()))}", f"different ones of {list(range(0, count * size, size))}")
    scales = {adapter.scale(part) for part in parts}
    widths = {adapter.matrices[part][0].shape[1] for part in parts}
    if len(scales) != 1 or len(widths) != 1:
        raise _refused(where, f"scales {sorted(scales)} and widths {sorted(widths)}", "one scale and one width")
    rank = sum(adapter.rank_of(part) for part in parts)
    a = np.concatenate([adapter.matrices[part][0] for part in parts])
    b = np.zeros((count * size, rank), np.float32)
    column = 0
    for part in parts:
        offset, own = offsets[part], adapter.matrices[part][1]
        assert offset is not None
        b[offset : offset + size, column : column + own.shape[1]] = own
        column += own.shape[1]
    return Block(a=a, b=b, alpha=_alpha(scales.pop(), rank, rslora=adapter.rslora, where=where))


def _alpha(scale: float, rank: int, *, rslora: bool, where: str) -> float:
    """The alpha that gives this scale at this rank, in float64, to the last bit."""
    divisor = math.sqrt(rank) if rslora else float(rank)
    alpha = scale * divisor  # a neighbour of this one is further from the product, and its quotient from the scale
    if alpha / divisor == scale:
        return alpha
    raise _refused(where, f"scale {scale!r}, which no alpha gives at rank {rank}", "another rank or alpha")


def _refused(place: str, got: str, allowed: str) -> ContractError:
    return ContractError(place, got=got, allowed=allowed, remedy="correct the adapter, or convert to v3")
