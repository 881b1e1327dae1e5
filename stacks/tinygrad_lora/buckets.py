"""A micro-batch as arrays of a few fixed shapes: each shape is one captured function, and padding changes no result.

Padding is embedded as zeros, is seen by no token and carries no loss, so its cotangents are exactly 0 and it adds 0 to each sum.

Shape suffixes: B sequences, T tokens, M = B T, N rows that carry loss, C rows of a chunk of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from contract.data import dropout
from contract.data.batches import PADDING, Batch
from contract.data.row import IGNORE_INDEX
from contract.training.inputs import Run
from contract.worker import graph as requests
from contract.worker.taps import LM_HEAD
from stacks.tinygrad_lora.host import rounded
from stacks.tinygrad_lora.models.section import PLACES, TOKENS, Model
from stacks.tinygrad_lora.step import COUNTED, INDEX, KEEP, LABEL, PLACE, SEEN
from stacks.tinygrad_lora.visible import visible

SHORTEST = 16
"""Tokens of the shortest bucket; each next one has twice as many, the last one seq_len."""
_LOGITS = 2**24
"""Elements of a chunk's logits at most."""
_CHUNK = 256
"""C at most: more rows make no product faster."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    """A batch in its bucket: int64 [B, T] each, padded."""

    ids_BT: np.ndarray
    labels_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    samples_BT: np.ndarray


class Buckets:
    """The arrays of a run's micro-batches.

    Args:
        embeddings: embedding [V, D], and GPT-2's position_embedding [P, D].
    """

    def __init__(self, run: Run, model: Model, embeddings: Mapping[str, np.ndarray]) -> None:
        self._run, self._model, self._embeddings = run, model, embeddings
        self._plan = run.plan
        contract = run.contract
        self._rows, self._seq_len, self._packing = contract.exec.batch_size, contract.exec.seq_len, contract.exec.packing
        layout = run.layout
        self._windows = {layout.window(layer) for layer in range(layout.num_hidden_layers)}
        self.chunk = chunk_rows(self._rows * _width(self._seq_len, self._seq_len), layout.vocab_size)
        self._widths = {
            name.removesuffix(".lora_a"): shape[1] for name, (shape, _) in requests.adapter(self._plan).items() if "lora_a" in name
        }

    def arrays(self, batch: Batch, *, step: int | None) -> Arrays:
        """What stacks/tinygrad_lora/step.py takes of a batch; with the dropout masks of a step, where there is one."""
        rectangle = self._rectangle(batch)
        next_BT = np.full_like(rectangle.labels_BT, IGNORE_INDEX)
        next_BT[:, :-1] = rectangle.labels_BT[:, 1:]
        index_N = np.flatnonzero(next_BT != IGNORE_INDEX)
        count = self.chunk * _power(-(-len(index_N) // self.chunk))
        whole_N = np.zeros(count, np.int64)
        whole_N[: len(index_N)] = index_N
        counted_N1 = (np.arange(count) < len(index_N))[:, None]
        arrays = {COUNTED: counted_N1, LABEL: np.where(counted_N1, next_BT.reshape(-1, 1)[whole_N], 0).astype(np.int32)}
        if self._plan.graph != "full_causal":  # a token's successor follows from the token alone: no other row goes through the graph
            rectangle = _picked(rectangle, whole_N)
            whole_N, index_N = np.arange(count), np.arange(count)
        place_M = np.full(rectangle.ids_BT.size, -1, np.int32)
        place_M[index_N] = np.arange(len(index_N))
        arrays |= {INDEX: whole_N.astype(np.int32), PLACE: place_M, **self._embedded(rectangle)}
        return arrays if step is None else arrays | self._masks(rectangle, whole_N, step)

    def _rectangle(self, batch: Batch) -> Rectangle:
        sequences, tokens = batch.ids_BT.shape
        shape = max(self._rows, sequences), _width(tokens, self._seq_len)
        padding = {"ids": 0, "labels": IGNORE_INDEX, "positions": 0, "segments": PADDING, "samples": PADDING}
        parts = {f"{name}_BT": np.full(shape, value, np.int64) for name, value in padding.items()}
        for name, part in parts.items():
            part[:sequences, :tokens] = getattr(batch, name)
        return Rectangle(**parts)

    def _embedded(self, rectangle: Rectangle) -> Arrays:
        """The tokens' rows, and what depends on where they stand."""
        rows_BTD = self._embeddings["embedding"][rectangle.ids_BT]
        rows_BTD[rectangle.segments_BT == PADDING] = 0
        arrays = {TOKENS: rounded(rows_BTD, self._plan.dtype)}
        if self._plan.graph != "full_causal":
            return arrays
        packed = self._packing or bool(rectangle.segments_BT.max() > 0)
        tokens = rectangle.ids_BT.shape[1]
        positions = rectangle.positions_BT if packed else np.arange(tokens)
        if "position_embedding" in self._embeddings:
            arrays[PLACES] = rounded(self._embeddings["position_embedding"][positions], self._plan.dtype)
        arrays |= self._model.places(positions)
        # without packing no mask is needed beside the causal one: padding is on the right, where no token looks
        segments_BT = rectangle.segments_BT if packed else None
        return arrays | {f"{SEEN}{window}": visible(tokens, window=window, segments_BT=segments_BT) for window in self._windows}

    def _masks(self, rectangle: Rectangle, index_N: np.ndarray, step: int) -> Arrays:
        """The dropout mask of each linear that has LoRA, the head's of its rows alone; nothing without dropout."""
        contract = self._run.contract
        if contract.adapter.dropout == 0:
            return {}
        masks: Arrays = {}
        for path, width in self._widths.items():
            samples, positions = rectangle.samples_BT, rectangle.positions_BT
            if path == LM_HEAD:
                samples, positions = (part.reshape(1, -1)[:, index_N] for part in (samples, positions))
            masks[KEEP + path] = dropout.mask(
                seed=contract.exec.seed, step=step, samples=samples, positions=positions, site=path.rpartition(".")[2], width=width,
                layer=-1 if path == LM_HEAD else int(path.split(".")[1]), probability=contract.adapter.dropout,
            )  # fmt: skip
        return masks


def chunk_rows(rows: int, vocabulary: int) -> int:
    """C: as many rows as give _LOGITS logits, in multiples of SHORTEST; no more than there are, nor than _CHUNK."""
    fitting = max(SHORTEST, _LOGITS // vocabulary // SHORTEST * SHORTEST)
    return min(_CHUNK, fitting, -(-rows // SHORTEST) * SHORTEST)


def _width(tokens: int, seq_len: int) -> int:
    """T of the smallest bucket that holds so many tokens."""
    width = SHORTEST * _power(-(-tokens // SHORTEST))
    return seq_len if tokens <= seq_len < width else width


def _power(count: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(0, count - 1).bit_length()


def _picked(rectangle: Rectangle, index_N: np.ndarray) -> Rectangle:
    """Some tokens of all sequences, as one sequence."""
    return Rectangle(**{name: part.reshape(1, -1)[:, index_N] for name, part in vars(rectangle).items()})
