"""Which tokens a token of a batch sees.

Legend: B sequences, T tokens, S tokens that are looked at (= T; with a cache, those of it too).
"""

from __future__ import annotations

import math

import torch

from contract.data.batches import PADDING
from stacks.torch_qlora.attention import causally_hidden


class Visible:
    """A token sees those of its own segment that stand no later than itself, within its layer's window. Padding sees nothing.

    Masks are made when a layer first asks for its window's, and shared by all layers that have it.

    Args:
        segments_BT: PADDING for padding; None: one segment without padding.
        positions_BT, keys: where new tokens stand, and positions and segments [B, S] of all tokens of a cache, the new ones last; None
            without a cache, where tokens stand in their order.
    """

    def __init__(
        self,
        tokens: int,
        device: torch.device,
        *,
        segments_BT: torch.Tensor | None = None,
        positions_BT: torch.Tensor | None = None,
        keys: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._tokens, self._device = tokens, device
        self._segments_BT, self._positions_BT, self._keys = segments_BT, positions_BT, keys
        self._hidden: dict[int | None, torch.Tensor] = {}
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}
        self.blind_B1T1: torch.Tensor | None = None
        """True for padding; None where there is none."""
        if segments_BT is not None and bool((segments_BT == PADDING).any()):
            self.blind_B1T1 = (segments_BT == PADDING)[:, None, :, None]

    def hidden(self, window: int | None) -> torch.Tensor:
        """True where t does not see s; bool, [T, S] or [B, 1, T, S]."""
        if window not in self._hidden:
            self._hidden[window] = self._by_order(window) if self._keys is None else self._by_position(window, *self._keys)
        return self._hidden[window]

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to scores: 0 where t sees s, else -inf; a blind token's row is all zeros. None: the plain causal mask."""
        within = self._keys is None and (window is None or window >= self._tokens)
        if within and self._segments_BT is None:
            return None
        key = window, dtype
        if key not in self._masks:
            hidden = self.hidden(window)
            hidden = hidden if self.blind_B1T1 is None else hidden & ~self.blind_B1T1
            self._masks[key] = torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, -math.inf)
        return self._masks[key]

    def _by_order(self, window: int | None) -> torch.Tensor:
        hidden_TS = causally_hidden(self._tokens, window=window, device=self._device)
        if self._segments_BT is None:
            return hidden_TS
        return hidden_TS | _apart(self._segments_BT, self._segments_BT)

    def _by_position(self, window: int | None, positions_BS: torch.Tensor, segments_BS: torch.Tensor) -> torch.Tensor:
        assert self._positions_BT is not None
        ahead_B1TS = positions_BS[:, None, None, :] - self._positions_BT[:, None, :, None]
        segments_BT = torch.zeros_like(self._positions_BT) if self._segments_BT is None else self._segments_BT
        hidden_B1TS = (ahead_B1TS > 0) | _apart(segments_BT, segments_BS)
        return hidden_B1TS if window is None else hidden_B1TS | (ahead_B1TS <= -window)


def _apart(segments_BT: torch.Tensor, segments_BS: torch.Tensor) -> torch.Tensor:
    """True where t and s are of different segments, or padding; [B, 1, T, S]."""
    segments_B1T1, segments_B11S = segments_BT[:, None, :, None], segments_BS[:, None, None, :]
    return (segments_B1T1 != segments_B11S) | (segments_B1T1 == PADDING)
