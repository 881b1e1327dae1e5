"""Which tokens a token sees: made on the host, and given to the kernels as a tensor.

So neither a window nor where segments begin is part of a kernel, and one captured block serves them all.

Shape suffixes: B sequences, T tokens that look, S tokens that are looked at (= T).
"""

from __future__ import annotations

import numpy as np

from contract.data.batches import PADDING


def visible(
    tokens: int, *, window: int | None = None, valid_BT: np.ndarray | None = None, segments_BT: np.ndarray | None = None
) -> np.ndarray:
    """Whether token t sees token s: s <= t, t - s < window where there is one (arXiv:2310.06825), valid[s], and both of one segment.

    A token of padding is of no segment: it sees nothing, and nothing sees it.

    Args:
        window: at least 1.
        valid_BT: bool.
        segments_BT: int64, PADDING on padding.

    Returns:
        bool, [T, S], or [B, 1, T, S] where there is `valid_BT` or `segments_BT`.
    """
    t_T1, s_1S = np.arange(tokens)[:, None], np.arange(tokens)[None, :]
    seen: np.ndarray = t_T1 >= s_1S
    if window is not None:
        seen = seen & (t_T1 - s_1S < window)
    if valid_BT is not None:
        seen = seen & valid_BT[:, None, None, :]
    if segments_BT is not None:
        same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
        seen = seen & (same_BTS & (segments_BT != PADDING)[:, :, None])[:, None]
    return seen
