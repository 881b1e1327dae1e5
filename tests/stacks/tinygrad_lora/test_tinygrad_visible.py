"""Which tokens a token sees, against a loop over its definition."""

from __future__ import annotations

import numpy as np
import pytest

from contract.data.batches import PADDING
from stacks.tinygrad_lora.visible import visible

SEGMENTS = np.array([[0, 0, 1, 1, 1, 0, PADDING], [PADDING, PADDING, 3, 3, 4, 4, 4]])
VALID = np.array([[1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 1]], dtype=bool)
T = 7


@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
@pytest.mark.parametrize(("valid", "segments"), [(None, None), (VALID, None), (None, SEGMENTS), (VALID, SEGMENTS)])
def test_every_pair(window: int | None, valid: np.ndarray | None, segments: np.ndarray | None) -> None:
    seen = visible(T, window=window, valid_BT=valid, segments_BT=segments)
    assert seen.dtype == bool
    assert seen.shape == ((T, T) if valid is None and segments is None else (2, 1, T, T))
    for b, t, s in np.ndindex(2, T, T):
        want = s <= t and (window is None or t - s < window)
        want = want and (valid is None or bool(valid[b, s]))
        want = want and (segments is None or bool(segments[b, t] == segments[b, s] != PADDING))
        assert np.broadcast_to(seen, (2, 1, T, T))[b, 0, t, s] == want, (b, t, s)
