"""Passes over new tokens of a batch, with the keys and values of those before them in a cache: static shapes, captured and replayed.

A pass has so many columns, the same for every sequence; where a sequence begins later, its first columns are padding, which sees nothing
and is seen by none. What a token sees is made on the host and goes in as a tensor, so that the kernels depend on shapes alone.

Shape suffixes: B sequences, T new columns, S columns of the cache's room, D hidden_size, V vocab_size.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from tinygrad import Tensor, TinyJit
from tinygrad.uop.ops import UOp

from contract.worker.taps import HEAD
from stacks.tinygrad_lora.cache import KeyValueCache
from stacks.tinygrad_lora.held import Held
from stacks.tinygrad_lora.host import to_device, to_host
from stacks.tinygrad_lora.models.section import Pass
from stacks.tinygrad_lora.replay import COMPILING

PADDING = -1
"""The position of a column that holds no token."""

_UNSEEN = 2**30
"""The position of a column of the room that holds none: after every token's, so that none sees it."""

_PASSING = (".base", ".lora_bax", "k_rope")
"""Taps that enter nothing but a sum or a store."""

_Pass = Callable[[dict[str, Tensor], UOp], dict[str, Tensor]]


class Cancelled(Exception):
    """The one who asked has no use for more."""


def seen(query_positions_BT: np.ndarray, key_positions_BS: np.ndarray, window: int | None) -> np.ndarray:
    """Whether a token sees a column: not after it, and within the window where there is one; bool [B, 1, T, S].

    PADDING sees nothing; _UNSEEN is seen by none.
    """
    distance_BTS = query_positions_BT[:, :, None].astype(np.int64) - key_positions_BS[:, None, :]
    found: np.ndarray = (distance_BTS >= 0) & (query_positions_BT != PADDING)[:, :, None]
    if window is not None:
        found &= distance_BTS < window
    return found[:, None]


class Decoder:
    """One batch at a time.

    Args:
        held: the model.
        batch: B.
        room: S, more than the columns of any pass; it doubles where more are needed.
        passes: how many of them are going to make or capture kernels, as far as that is known.
        told: of how many layers the kernels were made, and of how many; may raise Cancelled.

    Attributes:
        compile_seconds: how long the passes took in which kernels were made or captured.
    """

    def __init__(self, held: Held, *, batch: int, room: int, passes: int, told: Callable[[int, int], None]) -> None:
        self._held, self.batch, self._told = held, batch, told
        self._windows = [held.plan.layout.window(layer) for layer in range(held.plan.layout.num_hidden_layers)]
        self._cache = self._room(room)
        self._positions_BS = np.full((batch, room), _UNSEEN)
        self._passes: dict[int, _Pass] = {}
        self._filled, self._made, self._to_make, self._making = 0, 0, passes * len(self._windows), False
        self.compile_seconds = 0.0

    def clear(self) -> None:
        """Forgets every token."""
        self._filled = 0
        self._positions_BS[:] = _UNSEEN

    def make(self, columns: int) -> None:
        """Makes and captures the kernels of passes of so many columns, on nothing but padding; forgets every token."""
        for _ in range(COMPILING):
            self.clear()
            ids_BT = np.zeros((self.batch, columns), np.int64)
            self.logits(ids_BT, np.full_like(ids_BT, PADDING))
        self.clear()

    def logits(self, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        """Logits [B, V] after the last of the new columns.

        Args:
            ids_BT: int64; any id where there is padding.
            positions_BT: int64, PADDING where there is no token.
        """
        started, self._making, columns = time.monotonic(), False, ids_BT.shape[1]
        if self._filled + columns > self._positions_BS.shape[1]:
            self._grow()
        new = slice(self._filled, self._filled + columns)
        self._positions_BS[:, new] = np.where(positions_BT == PADDING, _UNSEEN, positions_BT)
        tensors = self._inputs(ids_BT, positions_BT)
        start = UOp.variable("start", 0, self._positions_BS.shape[1] - columns).bind(self._filled)
        if columns not in self._passes:
            self._passes[columns] = TinyJit(self._advanced)
        logits_BV = to_host(self._passes[columns](tensors, start)["logits"])
        self._filled += columns
        self.compile_seconds += time.monotonic() - started if self._making else 0
        return logits_BV

    def _room(self, columns: int) -> KeyValueCache:
        layout = self._held.plan.layout
        shape = (self.batch, layout.num_key_value_heads, columns, layout.head_dim)
        return KeyValueCache(layout.num_hidden_layers, shape, dtype=self._held.plan.dtype, device=self._held.device)

    def _grow(self) -> None:
        """Twice the room, with what was in it; the kernels are of the room's shape, and are made anew."""
        room = self._positions_BS.shape[1]
        self._cache = self._cache.moved_to(self._room(2 * room))
        self._positions_BS = np.pad(self._positions_BS, ((0, 0), (0, room)), constant_values=_UNSEEN)
        self._passes.clear()

    def _inputs(self, ids_BT: np.ndarray, positions_BT: np.ndarray) -> dict[str, Tensor]:
        places_BT = np.maximum(positions_BT, 0)
        arrays = self._held.rows(ids_BT, places_BT) | self._held.model.places(places_BT)
        for window in set(self._windows):
            arrays[_seen_within(window)] = seen(positions_BT, self._positions_BS, window)
        # in one order: TinyJit tells the tensors of a dictionary apart by their places, not by their names
        return {name: to_device(arrays[name], self._held.device) for name in sorted(arrays)}

    def _advanced(self, tensors: dict[str, Tensor], start: UOp) -> dict[str, Tensor]:
        """The logits after the last column; layer by layer, so that alike ones are scheduled once."""
        self._making = True
        self._to_make = max(self._to_make, self._made + len(self._windows))
        shared = Pass(
            seen=lambda layer: tensors[_seen_within(self._windows[layer])], cos=tensors.get("rope.cos"), sin=tensors.get("rope.sin"),
            cache=self._cache.at(start),
        )  # fmt: skip
        x_BTD = self._held.model.embed(tensors, _stored)
        for layer in range(len(self._windows)):
            self._told(self._made, self._to_make)
            section = f"layers.{layer}"
            linears = self._held.linears(section, _stored)
            x_BTD = self._held.model.block(x_BTD, self._held.tensors[section], linears, _stored, layer, shared).realize()
            self._made += 1
        return {"logits": self._logits(x_BTD[:, -1:].contiguous())}

    def _logits(self, x_B1D: Tensor) -> Tensor:
        """[B, V], of one column."""
        model, tensors, linears = self._held.model, self._held.tensors[HEAD], self._held.linears(HEAD, _stored)
        logits_B1V = model.project(model.finish(x_B1D, tensors, _stored), tensors, linears, _stored)
        return logits_B1V[:, 0].contiguous().realize()


def _stored(name: str, value: Tensor) -> Tensor:
    """What products take, and their outcomes, are stored once, rather than computed anew inside of a product; the rest is part of that."""
    return value if name.endswith(_PASSING) else value.contiguous()


def _seen_within(window: int | None) -> str:
    return f"seen.{window}"
