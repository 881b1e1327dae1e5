"""The float64 oracle: a decoder's graph forward and backward, written from the papers, by the sections of contract/worker/taps.py.

It serves as the third opinion on what the graph means, and, shown a Noise, as the graph whose response to rounding errors gives the
thresholds (parity/judge/perturb.py). Formulas: graph_block.py, graph_attention.py, graph_linear.py, graph_norm.py, graph_activation.py,
graph_operations.py, graph_ends.py.

Legend: P runs, B sequences, T tokens, D hidden_size, E head_dim. Arrays at this module's surface have no axis of runs, but for those
that `walk` and `answer` show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from contract.model.layout import GPT2Layout
from contract.worker.graph import POSITIONS, ROPE_TABLES, SEGMENTS
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, entering, linears, prefix, sections
from parity.reference.graph_attention import visible
from parity.reference.graph_block import Block, Parts
from parity.reference.graph_ends import Head, rope_tables
from parity.reference.graph_linear import Dropout, LoraLinear, scaling
from parity.reference.graph_norm import LayerNorm, RmsNorm
from parity.reference.graph_operations import Constants
from parity.reference.rounding import Exact, Noise, before, each, none, summed
from parity.reference.tape import Kind, See, Tape

NOT_FLOATS = ("ids", "labels", POSITIONS, SEGMENTS)
"""Tensors of a request that are no values of the graph."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a pass takes: ids and labels int64 [B, T]; positions and segments as contract/data/batches.py, or None."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray | None = None
    segments: np.ndarray | None = None

    def tensors(self) -> dict[str, np.ndarray]:
        """As a request carries them."""
        given = {"ids": self.ids, "labels": self.labels, POSITIONS: self.positions, SEGMENTS: self.segments}
        return {name: array for name, array in given.items() if array is not None}


@dataclass
class Trace:
    """What a whole pass computed, by full names.

    taps; bars: the loss's total cotangent at each tap (the RoPE tables have none); grads: that of each adapter matrix
    (`layers.0.q_proj.lora_a`); inputs and input_bars: each section's residual input and its cotangent (`embedding` has none).
    """

    taps: dict[str, np.ndarray] = field(default_factory=dict)
    bars: dict[str, np.ndarray] = field(default_factory=dict)
    grads: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    input_bars: dict[str, np.ndarray] = field(default_factory=dict)


class Oracle:
    """A plan's graph in float64.

    weight: a base weight's name -> its values (a base in NF4 dequantised already), asked for whenever they are used and not kept,
    so that no more than a section's weights are in memory; adapter: matrix name -> values; noise: what errors to add, none by default;
    dropout: what a training step keeps of the inputs of A.
    """

    def __init__(
        self, plan: GraphPlan, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray], *, noise: Noise | None = None,
        dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        self._layout = plan.layout
        self._plan = plan
        self._stored = weight
        self._adapter = {name: matrix.astype(np.float64) for name, matrix in adapter.items()}
        self._noise = noise or Exact()
        self._dropout = dropout
        self._constants = Constants(self._noise)

    def section(self, section: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The `block` request of contract/worker/graph.py: its tensors by name -> each tap, and with any cotangent each `grad.NAME`."""
        return {name: value[0] for name, value in self.answer(section, tensors).items()}

    def graph(self, batch: Batch, *, keep: Callable[[str], bool] = all) -> Trace:
        """The whole pass, forward and backward, on a batch; `keep` says which taps, by full name, the trace holds."""
        trace = Trace()
        holds = {"tap": trace.taps, "bar": trace.bars}

        def see(section: str, kind: Kind, name: str, value: np.ndarray) -> None:
            full = prefix(section) + name
            if kind == "grad" and name == "input":
                trace.input_bars[section] = value[0]
            elif kind == "grad":
                trace.grads[full] = value[0]
            elif keep(full):
                holds[kind][full] = value[0]

        trace.inputs.update({section: value[0] for section, value in self.walk(batch, see).items()})
        return trace

    def cotangents(self, section: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The total cotangent of each tap of a section, on the tensors of the `block` request."""
        found: dict[str, np.ndarray] = {}

        def see(kind: Kind, name: str, value: np.ndarray) -> None:
            if kind == "bar":
                found[name] = value[0]

        self._evaluate(section, tensors, see)
        return found

    def answer(self, section: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `section`, each array with a leading axis of runs."""
        found: dict[str, np.ndarray] = {}

        def see(kind: Kind, name: str, value: np.ndarray) -> None:
            if kind != "bar":
                found[name if kind == "tap" else f"grad.{name}"] = value

        self._evaluate(section, tensors, see)
        return found

    def _evaluate(self, section: str, tensors: Mapping[str, np.ndarray], see: See) -> None:
        given = {name: np.asarray(tensor, np.float64)[None] for name, tensor in tensors.items() if name not in NOT_FLOATS}
        bars = {name.removeprefix("bar."): it for name, it in given.items() if name.startswith("bar.")}
        overrides = {name.removeprefix("override."): it for name, it in given.items() if name.startswith("override.")}
        tape = Tape(section, self._noise, see, overrides=overrides, bars=bars)
        if section == EMBEDDING:
            self._embedding(tape, tensors["ids"], tensors.get(POSITIONS))
            if bars:
                self._embedding_backward(tape, placed=POSITIONS in tensors)
        elif section == HEAD:
            head = self._head(tape)
            head.forward(given["input"], tensors.get("labels"))
            if bars:
                head.backward()
        else:
            tokens = given["input"].shape[2]
            tables = self._tables(tape, tokens, tensors.get(POSITIONS))
            if tables is not None:
                cos, sin = (overrides.get(name, table) for name, table in zip(ROPE_TABLES, tables, strict=True))
                tables = cos, sin
            block = self._block(tape, section)
            block.forward(given["input"], tables, self._seen(section, tokens, tensors.get(SEGMENTS)))
            if bars:
                block.backward()

    def walk(self, batch: Batch, see: Callable[[str, Kind, str, np.ndarray], None]) -> dict[str, np.ndarray]:
        """The whole pass, showing each tap, cotangent and gradient by section, kind and own name; answers the sections' inputs.

        Every array has a leading axis of runs.
        """

        def tape(section: str) -> Tape:
            return Tape(section, self._noise, partial(see, section), overrides={}, bars={})

        first, *layers, last = sections(self._layout.num_hidden_layers)
        inputs: dict[str, np.ndarray] = {}
        blocks: list[tuple[Tape, Block]] = []
        opening = tape(first)
        x, tables = self._embedding(opening, batch.ids, batch.positions)
        for section in layers:
            inputs[section] = x
            body = tape(section)
            block = self._block(body, section)
            x = block.forward(x, tables, self._seen(section, batch.ids.shape[1], batch.segments))
            blocks.append((body, block))
        inputs[last] = x
        x_bar = self._ending(tape(last), x, batch.labels)
        while blocks:  # each one's memory goes with it
            body, block = blocks.pop()
            body.give("output", x_bar)
            x_bar = block.backward()
        opening.give(entering(self._layout), x_bar)
        self._embedding_backward(opening, placed=batch.positions is not None)
        return inputs

    def _ending(self, tape: Tape, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        head = self._head(tape)
        head.forward(x, labels)
        tape.give("loss", np.ones(1))
        return head.backward()

    def _embedding(
        self, tape: Tape, ids: np.ndarray, positions: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
        """The residual stream that enters the first block, and RoPE's tables where the layout has them."""
        x = tape.tap("embedding", self._weight("embedding")[ids][None], none)
        tables = self._tables(tape, ids.shape[1], positions)
        if tables is not None:
            cos, sin = tables
            return x, (tape.tap("rope.cos", cos, lambda: before(cos)), tape.tap("rope.sin", sin, lambda: before(sin)))
        rows = self._weight("position_embedding")[np.arange(ids.shape[1]) if positions is None else positions][None]
        embedded = x + tape.tap("position_embedding", rows, none)
        return tape.tap("embedded", embedded, lambda: each(embedded)), None

    def _embedding_backward(self, tape: Tape, *, placed: bool) -> None:
        """placed: the request gave positions; else all sequences share the rows of theirs."""
        if isinstance(self._layout, GPT2Layout):
            bar = tape.bar("embedded")
            tape.flow("embedding", bar)
            total = bar if placed else bar.sum(axis=1)
            tape.flow("position_embedding", total, none if placed else lambda: summed(total, np.sum(bar * bar, axis=1), bar.shape[1]))
            tape.bar("position_embedding")
        tape.bar("embedding")

    def _tables(self, tape: Tape, tokens: int, positions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        layout = self._layout
        if isinstance(layout, GPT2Layout):
            return None
        return rope_tables(tape, layout, np.arange(tokens) if positions is None else positions, angles_err=self._plan.dtype == "float64")

    def _seen(self, section: str, tokens: int, segments: np.ndarray | None) -> np.ndarray:
        return visible(tokens, self._layout.window(_layer(section)), segments)

    def _block(self, tape: Tape, section: str) -> Block:
        layout, own, lora = self._layout, linears(self._layout), self._plan.lora

        def linear(name: str) -> LoraLinear:
            path = f"{section}.{name}"
            return LoraLinear(
                name=name, input=own[name].input, weight_OI=self._weight(path),
                bias_O=self._weight(f"{path}.bias") if name in layout.biased else None,
                lora_a_RI=self._adapter.get(f"{path}.lora_a"), lora_b_OR=self._adapter.get(f"{path}.lora_b"),
                scaling=scaling(lora.rank_of(path), lora.alpha_of(path), rslora=lora.rslora), constants=self._constants,
                path=path, dropout=self._dropout,
            )  # fmt: skip

        return Block(
            tape,
            Parts(
                layout=layout, norm=lambda name: self._norm(f"{section}.{name}", name), linear=linear,
                scale=self._scale(_layer(section)), constants=self._constants,
            ),
        )  # fmt: skip

    def _scale(self, layer: int) -> float:
        """What scores are multiplied by."""
        root = float(self._layout.head_dim**-0.5)
        if not isinstance(self._layout, GPT2Layout):
            return root
        scale = root if self._layout.scale_attn_weights else 1.0
        return scale / (layer + 1) if self._layout.scale_attn_by_inverse_layer_idx else scale

    def _norm(self, weight: str, name: str) -> RmsNorm | LayerNorm:
        """A norm by its weight's name, and its own."""
        layout = self._layout
        if isinstance(layout, GPT2Layout):
            return LayerNorm(
                name=name, weight_D=self._weight(weight), bias_D=self._weight(f"{weight}.bias"), eps=layout.layer_norm_epsilon,
                constants=self._constants,
            )  # fmt: skip
        return RmsNorm(name=name, weight_D=self._weight(weight), eps=layout.rms_norm_eps, constants=self._constants)

    def _weight(self, name: str) -> np.ndarray:
        return self._stored(name).astype(np.float64)

    def _head(self, tape: Tape) -> Head:
        head = "embedding" if self._layout.tie_word_embeddings else "lm_head"
        return Head(tape, norm=self._norm("final_norm", "final_norm"), head_VD=self._weight(head))


def _layer(section: str) -> int:
    return int(section.removeprefix("layers."))
