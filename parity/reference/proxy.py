"""The proxy graph qlora_proxy_v1 in float64, forward and backward, by the sections of contract/worker/taps.py.

    h_0     = the embedding's row of the token before
    h_i+1   = h_i + F_i(h_i / sqrt(mean(h_i^2) + 1e-6)) / sqrt(n)        i = 0 .. n - 1
    logits  = F_head(h_n / sqrt(n)), with n = 0 F_head(h_0)              F = graph_linear.LoraLinear without a bias

The logits at t foretell t + 1, as in the causal graph, so that "the token before" is the one at t.

Legend: P runs, B sequences, T tokens, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from contract.worker.graph import POSITIONS, ROPE_TABLES, SEGMENTS
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, LM_HEAD, MIDDLE, PROXY_EPS, prefix, sections
from parity.reference.graph import Batch, Oracle
from parity.reference.graph_ends import Loss
from parity.reference.graph_linear import Dropout, LoraLinear, Low, scaling
from parity.reference.graph_norm import RmsNorm, RmsNormed
from parity.reference.rounding import Noise, Size, combined, each, none, once, rounded
from parity.reference.tape import Kind, See, Tape


def oracle(
    plan: GraphPlan, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray], *, noise: Noise | None = None,
    dropout: Dropout | None = None,
) -> Oracle:  # fmt: skip
    """The reference of the graph that a plan names; arguments as of Oracle. `weight` of lm_head is the head's, NF4 or not."""
    return (Oracle if plan.graph == "full_causal" else ProxyOracle)(plan, weight, adapter, noise=noise, dropout=dropout)


class _Block(NamedTuple):
    """What a block's way back needs."""

    linear: LoraLinear
    normed: RmsNormed
    normed_PBTD: np.ndarray
    low: Low | None


class _Head(NamedTuple):
    """What the head's way back needs."""

    linear: LoraLinear
    loss: Loss | None
    scaled_PBTD: np.ndarray
    low: Low | None


class ProxyOracle(Oracle):
    """A proxy plan's graph; what it answers is as Oracle's."""

    def _evaluate(self, section: str, tensors: Mapping[str, np.ndarray], see: See) -> None:
        floats = {name: it for name, it in tensors.items() if name not in ("ids", "labels", POSITIONS, SEGMENTS, *ROPE_TABLES)}
        given = {name: np.asarray(tensor, np.float64)[None] for name, tensor in floats.items()}
        bars = {name.removeprefix("bar."): it for name, it in given.items() if name.startswith("bar.")}
        overrides = {name.removeprefix("override."): it for name, it in given.items() if name.startswith("override.")}
        tape = Tape(section, self._noise, see, overrides=overrides, bars=bars)
        if section == EMBEDDING:
            self._rows(tape, tensors["ids"])
            if bars:
                tape.bar("embedding")
        elif section == HEAD:
            head = self._head_forward(tape, given["input"], tensors.get("labels"))
            if bars:
                self._head_backward(tape, head)
        else:
            block, _ = self._block_forward(tape, section, given["input"])
            if bars:
                self._block_backward(tape, block)

    def walk(self, batch: Batch, see: Callable[[str, Kind, str, np.ndarray], None]) -> dict[str, np.ndarray]:
        """As Oracle.walk."""

        def tape(section: str) -> Tape:
            return Tape(section, self._noise, partial(see, section), overrides={}, bars={})

        first, *layers, last = sections(self._plan.blocks)
        inputs, blocks = {}, []
        opening = tape(first)
        x_PBTD = self._rows(opening, batch.ids)
        for section in layers:
            inputs[section] = x_PBTD
            body = tape(section)
            block, x_PBTD = self._block_forward(body, section, x_PBTD)
            blocks.append((body, block))
        inputs[last] = x_PBTD
        ending = tape(last)
        head = self._head_forward(ending, x_PBTD, batch.labels)
        ending.give("loss", np.ones(1))
        x_bar = self._head_backward(ending, head)
        while blocks:
            body, block = blocks.pop()
            body.give("output", x_bar)
            x_bar = self._block_backward(body, block)
        opening.give("embedding", x_bar)
        opening.bar("embedding")
        return inputs

    def _rows(self, tape: Tape, ids: np.ndarray) -> np.ndarray:
        return tape.tap("embedding", self._weight("embedding")[ids][None], none)

    def _block_forward(self, tape: Tape, section: str, x_PBTD: np.ndarray) -> tuple[_Block, np.ndarray]:
        x_PBTD = tape.enter(x_PBTD)
        norm = RmsNorm(name="norm", weight_D=np.ones(x_PBTD.shape[-1]), eps=PROXY_EPS, constants=self._constants)
        normed, normed_PBTD = norm.forward(tape, x_PBTD)
        linear = self._linear(section, MIDDLE, "norm")
        f_PBTD, low = linear.forward(tape, normed_PBTD)
        share, size = self._divided(f_PBTD)
        y = x_PBTD + share
        y_PBTD = tape.tap("output", y, lambda: combined(size(), each(y)))
        return _Block(linear, normed, normed_PBTD, low), y_PBTD

    def _block_backward(self, tape: Tape, block: _Block) -> np.ndarray:
        y_bar = tape.bar("output")
        tape.flow("input", y_bar)
        tape.flow(MIDDLE, *self._divided(y_bar))
        block.linear.backward(tape, block.normed_PBTD, block.low)
        block.normed.backward(tape, "input")
        return tape.leave()

    def _head_forward(self, tape: Tape, x_PBTD: np.ndarray, labels_BT: np.ndarray | None) -> _Head:
        scaled_PBTD = tape.tap("scaled", *self._divided(tape.enter(x_PBTD)))
        linear = self._linear(HEAD, LM_HEAD, "scaled")
        logits_PBTV, low = linear.forward(tape, scaled_PBTD)
        loss = None if labels_BT is None else Loss(tape, LM_HEAD, logits_PBTV, labels_BT)
        return _Head(linear, loss, scaled_PBTD, low)

    def _head_backward(self, tape: Tape, head: _Head) -> np.ndarray:
        if head.loss is not None:
            head.loss.backward(tape)
        head.linear.backward(tape, head.scaled_PBTD, head.low)
        tape.flow("input", *self._divided(tape.bar("scaled")))
        return tape.leave()

    def _divided(self, x_PBTD: np.ndarray) -> tuple[np.ndarray, Size]:
        """x / sqrt(n), as a quotient or as a product by a reciprocal, and its size; n = 0 and 1: x itself."""
        n = self._plan.blocks
        if n < 2:
            return x_PBTD, none
        y = x_PBTD / self._constants.beside(x_PBTD, float(np.sqrt(n)))
        return y, lambda: once(rounded(y, y), y)

    def _linear(self, section: str, name: str, source: str) -> LoraLinear:
        lora, path = self._plan.lora, prefix(section) + name
        return LoraLinear(
            name=name, input=source, weight_OI=self._weight(path), bias_O=None, lora_a_RI=self._adapter.get(f"{path}.lora_a"),
            lora_b_OR=self._adapter.get(f"{path}.lora_b"), scaling=scaling(lora.rank_of(path), lora.alpha_of(path), rslora=lora.rslora),
            constants=self._constants, path=path, dropout=self._dropout,
        )  # fmt: skip
