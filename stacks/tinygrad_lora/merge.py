"""The in-memory merge: W' = W + s B A (arXiv:2106.09685, section 4.1), in the bits of a merge of files (docs/artifacts.md).

    delta_ij = s (B_i0 A_0j + B_i1 A_1j + ...)     in float64, ranks ascending, from +0, then the product with s
    W'_ij    = float32(float64(W_ij) + delta_ij)

Whatever the graph's device is, this runs on tinygrad's CPU: others have no float64. Where the order of rounding matters, steps are
functions of their own, whose results are stored: a C compiler contracts a product and a sum to a fused multiply-add. B_ir A_rj is a
product of two float32 values, exact in float64, so that contraction changes nothing there.

Shape suffixes: O out_features, I in_features, R rank, N rows of a tile, C ranks that are added at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tinygrad import Tensor, dtypes

from contract.artifacts.names import order_of
from contract.worker.plan import GraphPlan, Lora
from contract.worker.stack import NotSupported
from contract.worker.taps import HEAD, LM_HEAD
from stacks.tinygrad_lora import nf4
from stacks.tinygrad_lora.host import to_device, to_host
from stacks.tinygrad_lora.replay import Replays

Held = dict[str, dict[str, Tensor]]
"""section -> its tensors by their own names."""

Arrays = Mapping[str, np.ndarray]
Merged = dict[str, np.ndarray]
"""A linear's path -> W' [O, I], float32."""

HOST = "CPU"
"""The device that has float64 wherever this stack runs."""

_TILE = 2**18
"""Elements of a tile; its buffers stay in a cache."""

_RANKS = 16
"""Ranks that one kernel adds; the last ones are filled up with zeros, and a sum that began at +0 stays what it is when +0 is added."""


def merge_graph(
    plan: GraphPlan, held: Held, adapter: Arrays, *, asked: Sequence[str] | None, told: Callable[[str], None]
) -> tuple[GraphPlan, Held, Merged]:
    """Every linear of an open graph that has LoRA, merged.

    Args:
        held: the graph's frozen weights; not changed.
        adapter: PATH.lora_a [R, I] and PATH.lora_b [O, R], float32.
        asked: the linears that are to be answered; None: all that had LoRA.
        told: of each linear, before it is merged.

    Returns:
        The plan of the merged graph, its weights, and W' [O, I] of each linear that was asked for, float32.

    Raises:
        NotSupported: a graph in bfloat16, which does not hold W'.
        ValueError: a linear that was asked for has no LoRA; the base has values that float32 does not hold; a merged value is not finite.
    """
    paths = order_of({name.rpartition(".")[0] for name in adapter})
    for path in asked or ():
        if path not in paths:
            raise ValueError(f"merge: {path!r} has no LoRA; allowed: {', '.join(paths) or 'none'}; ask for one of them")
    if plan.dtype == "bfloat16":
        raise NotSupported(
            "tinygrad_lora merges into graphs in float32 and float64, not in bfloat16, which does not hold the merged weights"
        )
    plain, merger = {section: _plain(plan, section, tensors) for section, tensors in held.items()}, Merger()
    merged: Merged = {}
    for path in paths:
        told(path)
        merged[path] = _merged_linear(plan, path, plain, adapter, merger)
    for path, weight_OI in merged.items():
        section, name = _place(path)
        where = plain[section][name].device
        plain[section][name] = to_device(weight_OI.astype(plan.dtype), str(where))
    paths_left = tuple(path for path in plan.paths if path != "nf4_linear")
    after = plan.model_copy(update={"lora": Lora(rank=1, alpha=1.0, targets=()), "paths": paths_left})
    return after, plain, {path: merged[path] for path in (merged if asked is None else asked)}


def _merged_linear(plan: GraphPlan, path: str, held: Held, adapter: Arrays, merger: Merger) -> np.ndarray:
    section, name = _place(path)
    weight_OI = to_host(held[section][name])
    narrow_OI = weight_OI.astype(np.float32)
    if not np.array_equal(narrow_OI, weight_OI):
        raise ValueError(f"{path}: merge: the base has values that float32 does not hold; open the graph with weights in float32")
    merged_OI = merger.merged(narrow_OI, adapter[f"{path}.lora_a"], adapter[f"{path}.lora_b"], scale=plan.lora.scaling_of(path))
    if not np.isfinite(merged_OI).all():
        raise ValueError(f"{path}: merge: a value is NaN or infinite once it is merged; allowed are finite ones; look into both for them")
    return merged_OI


def _plain(plan: GraphPlan, section: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A section's tensors, where those of a linear that the product reads as NF4 codes are its dequantised weight, and none is LoRA's."""
    found = {name: it for name, it in tensors.items() if not name.endswith((".packed", ".absmax", ".scaling"))}
    for name in [name.removesuffix(".packed") for name in tensors if name.endswith(".packed")]:
        assert plan.base is not None
        out_features, in_features = (plan.layout.vocab_size, plan.layout.hidden_size) if name == LM_HEAD else plan.layout.widths[name]
        weight_OI = nf4.dequantize(
            tensors[f"{name}.packed"], tensors[f"{name}.absmax"], block_size=plan.base.block_size, out_features=out_features,
            in_features=in_features,
        )  # fmt: skip
        found[name] = weight_OI.contiguous().realize()
    return found


def _place(path: str) -> tuple[str, str]:
    """A linear's section, and its own name there."""
    section, _, name = path.rpartition(".")
    return section or HEAD, name


class Merger:
    """Merges weight after weight; kernels are made for the first weight of a shape."""

    def __init__(self) -> None:
        self._replays = Replays(HOST)

    def merged(self, weight_OI: np.ndarray, a_RI: np.ndarray, b_OR: np.ndarray, *, scale: float) -> np.ndarray:
        """W', float32.

        Args:
            weight_OI, a_RI, b_OR: float32.
            scale: s, in float64.
        """
        features, width = weight_OI.shape
        rows = min(features, max(1, _TILE // width))
        a_RI, b_OR = (_filled_up(matrix, axis) for axis, matrix in enumerate((a_RI, b_OR)))
        merged_OI = np.empty_like(weight_OI)
        for begin in range(0, features, rows):
            # the last tile begins earlier, rather than be of another shape: its first rows come twice, with the same bits
            tile = slice(start := min(begin, features - rows), start + rows)
            merged_OI[tile] = self._tile(weight_OI[tile], a_RI, b_OR[tile], scale)
        return merged_OI

    def _tile(self, weight_NI: np.ndarray, a_RI: np.ndarray, b_NR: np.ndarray, scale: float) -> np.ndarray:
        total_NI = np.zeros(weight_NI.shape)
        for start in range(0, len(a_RI), _RANKS):
            some = slice(start, start + _RANKS)
            total_NI = self._replays.run(_added, {"total": total_NI, "a": a_RI[some], "b": b_NR[:, some]})["total"]
        delta_NI = self._replays.run(_scaled, {"total": total_NI, "scale": np.array([scale])})["delta"]
        return self._replays.run(_merged, {"weight": weight_NI, "delta": delta_NI})["merged"]


def _added(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """total + B_i0 A_0j + B_i1 A_1j + ..., float64: each rank is added to the sum of those before it."""
    total_NI = tensors["total"]
    a_CI, b_NC = tensors["a"].cast(dtypes.float64), tensors["b"].cast(dtypes.float64)
    for rank in range(_RANKS):
        total_NI = total_NI + b_NC[:, rank : rank + 1] * a_CI[rank : rank + 1]
    return {"total": total_NI.contiguous().realize()}


def _scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"delta": (tensors["total"] * tensors["scale"]).contiguous().realize()}


def _merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"merged": (tensors["weight"].cast(dtypes.float64) + tensors["delta"]).cast(dtypes.float32).contiguous().realize()}


def _filled_up(matrix: np.ndarray, axis: int) -> np.ndarray:
    """Zeros up to a multiple of _RANKS ranks."""
    missing = [(0, 0), (0, 0)]
    missing[axis] = (0, -matrix.shape[axis] % _RANKS)
    return np.pad(matrix, missing)
