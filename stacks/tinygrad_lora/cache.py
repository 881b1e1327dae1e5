"""Keys and values of the tokens that were computed already, so that a new one needs no pass over those before it.

A room holds so many columns, whether they are filled or not: its shape, and with it the kernels, stay the same while it fills. What is
not filled yet is seen by none. New tokens are written to the columns from `start` on, which is a variable of the kernels and no number in
them (tinygrad's `Variable`).

Shape suffixes: B sequences, T new tokens, S columns of the room, K num_key_value_heads, E head_dim.
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor
from tinygrad.uop.ops import UOp

from stacks.tinygrad_lora.host import rounded, to_device


class KeyValueCache:
    """One room for a batch.

    Args:
        layers: of the model.
        shape: [B, K, S, E].
        dtype: of keys and values: float32, float64 or bfloat16.
        device: tinygrad's name of it.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], *, dtype: str, device: str) -> None:
        # from arrays, each its own: two rooms of zeros made by tinygrad would be one constant
        self._rooms = [_room(shape, dtype, device) for _ in range(2 * layers)]
        self._start: UOp | None = None

    def at(self, start: UOp) -> KeyValueCache:
        """The same cache, whose next tokens go to the columns from `start` on: a bound variable from 0 to S - T."""
        self._start = start
        return self

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values into its rooms; answers the rooms, [B, K, S, E]."""
        k_BKSE, v_BKSE = self._rooms[2 * layer : 2 * layer + 2]
        self._write(k_BKSE, k_BKTE)
        self._write(v_BKSE, v_BKTE)
        return k_BKSE, v_BKSE

    def moved_to(self, other: KeyValueCache) -> KeyValueCache:
        """Another cache with larger rooms, with what is in these, in the same columns."""
        for room_BKSE, larger_BKSE in zip(self._rooms, other._rooms, strict=True):
            larger_BKSE[:, :, : int(room_BKSE.shape[2])].assign(room_BKSE).realize()
        return other

    def _write(self, room_BKSE: Tensor, new_BKTE: Tensor) -> None:
        assert self._start is not None, "a pass says where its tokens go"
        tokens = int(new_BKTE.shape[2])
        room_BKSE[:, :, self._start : self._start + tokens].assign(new_BKTE).realize()


def _room(shape: tuple[int, ...], dtype: str, device: str) -> Tensor:
    return to_device(rounded(np.zeros(shape, np.float32), dtype), device)
