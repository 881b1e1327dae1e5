"""The float64 oracle: a Llama-type graph forward and backward, written from the papers, by the sections of contract/worker/taps.py.

It serves as the third opinion on what the graph means, and, shown a Noise, as the graph whose response to rounding errors gives the
thresholds (parity/judge/perturb.py). Formulas: llama_block.py, llama_attention.py, llama_linear.py, llama_operations.py, llama_ends.py.

Legend: P runs, B sequences, T tokens, D hidden_size, E head_dim. Arrays at this module's surface have no axis of runs, but for those
that `walk` and `answer` show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from contract.worker.graph import ROPE_TABLES, has_bias
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, prefix, sections
from parity.reference.llama_block import Block
from parity.reference.llama_ends import Head, rope_tables
from parity.reference.llama_linear import LoraLinear, scaling
from parity.reference.llama_operations import Constants
from parity.reference.rounding import Exact, Noise, none
from parity.reference.tape import Kind, See, Tape


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
    so that no more than a section's weights are in memory; adapter: matrix name -> values; noise: what errors to add, none by default.
    """

    def __init__(
        self, plan: GraphPlan, weight: Callable[[str], np.ndarray], adapter: Mapping[str, np.ndarray], *, noise: Noise | None = None
    ) -> None:
        layout = plan.layout
        self._plan = plan
        self._weight = weight
        self._adapter = {name: matrix.astype(np.float64) for name, matrix in adapter.items()}
        self._noise = noise or Exact()
        s = scaling(plan.lora.rank, plan.lora.alpha, rslora=plan.lora.rslora)
        self._constants = Constants.of(self._noise, scaling=s, head_dim=layout.head_dim, eps=layout.rms_norm_eps, width=layout.hidden_size)

    def section(self, section: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The `block` request of contract/worker/graph.py: its tensors by name -> each tap, and with any cotangent each `grad.NAME`."""
        return {name: value[0] for name, value in self.answer(section, tensors).items()}

    def graph(self, ids: np.ndarray, labels: np.ndarray, *, keep: Callable[[str], bool] = all) -> Trace:
        """The whole pass, forward and backward, on ids and labels int64 [B, T]; `keep` says which taps, by full name, the trace holds."""
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

        trace.inputs.update({section: value[0] for section, value in self.walk(ids, labels, see).items()})
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
        given = {name: np.asarray(tensor, np.float64)[None] for name, tensor in tensors.items() if name not in ("ids", "labels")}
        bars = {name.removeprefix("bar."): it for name, it in given.items() if name.startswith("bar.")}
        overrides = {name.removeprefix("override."): it for name, it in given.items() if name.startswith("override.")}
        tape = Tape(section, self._noise, see, overrides=overrides, bars=bars)
        if section == EMBEDDING:
            self._embedding(tape, tensors["ids"])
            if bars:
                tape.bar("embedding")
        elif section == HEAD:
            head = self._head(tape)
            head.forward(given["input"], tensors.get("labels"))
            if bars:
                head.backward()
        else:
            tables = (overrides.get(ROPE_TABLES[0]), overrides.get(ROPE_TABLES[1]))
            cos, sin = self._tables(tape, given["input"].shape[2])
            block = self._block(tape, section)
            block.forward(given["input"], (cos if tables[0] is None else tables[0], sin if tables[1] is None else tables[1]))
            if bars:
                block.backward()

    def walk(self, ids: np.ndarray, labels: np.ndarray, see: Callable[[str, Kind, str, np.ndarray], None]) -> dict[str, np.ndarray]:
        """The whole pass, showing each tap, cotangent and gradient by section, kind and own name; answers the sections' inputs.

        Every array has a leading axis of runs.
        """

        def tape(section: str) -> Tape:
            return Tape(section, self._noise, partial(see, section), overrides={}, bars={})

        first, *layers, last = sections(self._plan.layout.num_hidden_layers)
        inputs: dict[str, np.ndarray] = {}
        blocks: list[tuple[Tape, Block]] = []
        opening = tape(first)
        x, tables = self._embedding(opening, ids)
        for section in layers:
            inputs[section] = x
            body = tape(section)
            block = self._block(body, section)
            x = block.forward(x, tables)
            blocks.append((body, block))
        inputs[last] = x
        x_bar = self._ending(tape(last), x, labels)
        while blocks:  # each one's memory goes with it
            body, block = blocks.pop()
            body.give("output", x_bar)
            x_bar = block.backward()
        opening.give("embedding", x_bar)
        opening.bar("embedding")
        return inputs

    def _ending(self, tape: Tape, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        head = self._head(tape)
        head.forward(x, labels)
        tape.give("loss", np.ones(1))
        return head.backward()

    def _embedding(self, tape: Tape, ids: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        x = tape.tap("embedding", self._weight("embedding")[ids].astype(np.float64)[None], none)
        cos, sin = self._tables(tape, ids.shape[1])
        return x, (tape.tap("rope.cos", cos, none), tape.tap("rope.sin", sin, none))

    def _tables(self, tape: Tape, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        layout = self._plan.layout
        return rope_tables(tape, tokens, layout.head_dim, layout.rope_theta, angles_err=self._plan.dtype == "float64")

    def _block(self, tape: Tape, section: str) -> Block:
        def weight(name: str) -> np.ndarray:
            return self._weight(f"{section}.{name}").astype(np.float64)

        def linear(name: str) -> LoraLinear:
            return LoraLinear(
                name=name,
                weight_OI=weight(name),
                bias_O=weight(f"{name}.bias") if has_bias(self._plan.layout, name) else None,
                lora_a_RI=self._adapter.get(f"{section}.{name}.lora_a"),
                lora_b_OR=self._adapter.get(f"{section}.{name}.lora_b"),
                constants=self._constants,
            )

        key_heads = self._plan.layout.num_key_value_heads
        return Block(tape, weight=weight, linear=linear, key_heads=key_heads, constants=self._constants)

    def _head(self, tape: Tape) -> Head:
        name = "embedding" if self._plan.layout.tie_word_embeddings else "lm_head"
        norm, head = self._weight("final_norm").astype(np.float64), self._weight(name).astype(np.float64)
        return Head(tape, norm_D=norm, head_VD=head, constants=self._constants)
