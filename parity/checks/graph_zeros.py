"""What a graph's structure makes zero: there nothing but zero will do, whatever the dtype and the response."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from contract.data.batches import PADDING
from contract.worker import graph
from parity.checks.check import Arrays
from parity.checks.graph_case import GraphCase
from parity.judge.verdict import Comparison, rows
from parity.reference.graph_attention import visible

STRUCTURE = "zero by the graph's structure, exactly"
ZERO = "zero."
"""Before the name of what is compared."""


def comparisons(case: GraphCase, observed: Arrays) -> list[Comparison]:
    """Every part that must be zero, kind by kind over all layers: A's gradient and B A x where B is zero, the weights of what a token does
    not see, the context of a token that sees nothing.
    """
    by_kind: dict[str, list[np.ndarray]] = {}
    for kind, part in _parts(case, observed):
        by_kind.setdefault(kind, []).append(part.astype(np.float64).reshape(-1))
    joined = {kind: np.concatenate(found)[None] for kind, found in by_kind.items()}
    return [
        dataclasses.replace(rows(f"{ZERO}{kind}", part, np.zeros_like(part), np.zeros(1), STRUCTURE), where=None)
        for kind, part in joined.items() if part.size
    ]  # fmt: skip


def _parts(case: GraphCase, observed: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    for name in graph.adapter(case.plan):
        path = name.removesuffix(".lora_b")
        if path == name or case.adapter[name].any():
            continue
        for zero in (f"grad.{path}.lora_a", f"{path}.lora_bax"):
            if zero in observed:
                yield _kind(zero), observed[zero]
    if case.plan.graph == "full_causal":
        yield from _unseen(case, observed)


def _unseen(case: GraphCase, observed: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    segments_BT, tokens = case.batch.segments, case.batch.ids.shape[1]
    for layer in range(case.plan.layout.num_hidden_layers):
        weights, context = (f"layers.{layer}.{tap}" for tap in ("weights", "context"))
        if weights in observed:
            seen = np.broadcast_to(visible(tokens, case.plan.layout.window(layer), segments_BT), observed[weights].shape)
            yield "weights", observed[weights][~seen]
        if context in observed and segments_BT is not None:
            yield "context", observed[context][segments_BT == PADDING]


def _kind(name: str) -> str:
    """`grad.layers.3.q_proj.lora_a` is of the kind `grad.q_proj.lora_a`."""
    before, marker, after = name.partition("layers.")
    return before + after.partition(".")[2] if marker else name
