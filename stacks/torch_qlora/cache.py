"""Keys and values of tokens that were computed before, so that a new token is computed alone.

Shape legend: B sequences, K num_key_value_heads, T new tokens, S tokens that are held (the new ones last), P tokens that there is room
for, E head_dim.
"""

from __future__ import annotations

import torch


class KeyValueCache:
    """Each layer's keys and values, after RoPE, and where their tokens stand.

    A pass over new tokens says where they stand (`place`), then each layer appends its own (`extend`). Tokens of padding are held too,
    under the segment PADDING: a sequence's place in the tensors and its positions are two things, so that sequences of different
    lengths share a batch.
    """

    def __init__(self) -> None:
        self.length = 0
        """S: tokens that are held for each sequence, those of the pass under way and padding among them."""
        self._positions_BS: torch.Tensor | None = None
        self._segments_BS: torch.Tensor | None = None
        self._rooms: dict[tuple[int, str], torch.Tensor] = {}

    def place(self, positions_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Begins a pass: where its tokens stand. Answers the same of all tokens that are held, int64 [B, S] both.

        A token then sees the keys of its own segment whose position is at most its own, and within the layer's window.

        Args:
            segments_BT: PADDING for padding; None: all are of segment 0.
        """
        segments_BT = torch.zeros_like(positions_BT) if segments_BT is None else segments_BT
        if self._positions_BS is None or self._segments_BS is None:
            self._positions_BS, self._segments_BS = positions_BT, segments_BT
        else:
            self._positions_BS = torch.cat((self._positions_BS, positions_BT), dim=1)
            self._segments_BS = torch.cat((self._segments_BS, segments_BT), dim=1)
        self.length = self._positions_BS.shape[1]
        return self._positions_BS, self._segments_BS

    def extend(self, layer: int, k_BKTE: torch.Tensor, v_BKTE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a layer's keys and values of the tokens that `place` announced; answers all of them, [B, K, S, E] both."""
        k_BKSE, v_BKSE = (self._appended((layer, part), new_BKTE) for part, new_BKTE in (("k", k_BKTE), ("v", v_BKTE)))
        return k_BKSE, v_BKSE

    def select(self, rows_N: torch.Tensor) -> None:
        """Keeps some sequences and lets go of the others."""
        assert self._positions_BS is not None
        assert self._segments_BS is not None
        self._positions_BS, self._segments_BS = self._positions_BS[rows_N], self._segments_BS[rows_N]
        self._rooms = {key: room_BKPE[rows_N] for key, room_BKPE in self._rooms.items()}

    def _appended(self, key: tuple[int, str], new_BKTE: torch.Tensor) -> torch.Tensor:
        """All tokens of a layer's keys or values, [B, K, S, E], in a room that has a place for more."""
        start, room_BKPE = self.length - new_BKTE.shape[2], self._rooms.get(key)
        if room_BKPE is None or room_BKPE.shape[2] < self.length:
            batch, heads, _, width = new_BKTE.shape
            # Twice what is needed: each token is then copied twice at most, however many follow.
            larger_BKPE = new_BKTE.new_empty((batch, heads, 2 * self.length, width))
            if room_BKPE is not None:
                larger_BKPE[:, :, :start] = room_BKPE[:, :, :start]
            self._rooms[key] = room_BKPE = larger_BKPE
        room_BKPE[:, :, start : self.length] = new_BKTE
        return room_BKPE[:, :, : self.length]
