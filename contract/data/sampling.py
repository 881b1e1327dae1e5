"""Random numbers for drawing tokens, and the rule by which every stack draws with them.

From the logits z of the last token, in float64 whatever the graph's dtype is:

    e_i  = exp((z_i - max z) / temperature)
    the tokens in the order of falling e, of equal ones the lower id first;  c_k = e_0 + ... + e_k, added in that order
    kept = the first k with c_k >= top_p c_last, and all before it (all of them with top_p 1)
    next = the first k with c_k > u c_kept

Temperature 0 is greedy: the largest logit, of equal ones the lowest id; it takes no random number. As temperature falls to 0, drawing
becomes that. top_p: nucleus sampling, arXiv:1904.09751.
"""

from __future__ import annotations

import numpy as np

from contract.data import philox

_BITS = 53


def uniform(*, seed: int, sequences: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """u, one for each token that is to be drawn.

        u = (word_0 2^21 + word_1 div 2^11) / 2^53

    `word` are those of Philox4x32-10 for the counter (sequence mod 2^32, sequence div 2^32, position, 0) and the key
    contract.data.philox.key_of("sampling", seed): a draw does not depend on what else is in the batch, or was drawn before.

    Args:
        sequences: integers [...]: which of the sequences asked for this is, from 0.
        positions: integers [...], 0 to 2^32 - 1: where the token that is drawn will stand, the prompt's tokens counted.

    Returns:
        float64 [...], 0 <= u < 1, each a whole multiple of 2^-53.
    """
    sequences, positions = np.broadcast_arrays(sequences, positions)
    assert not positions.size or 0 <= positions.min() <= positions.max() < 2**32
    counter = np.stack((sequences & (2**32 - 1), (sequences >> 32) & (2**32 - 1), positions, np.zeros_like(positions)), axis=-1)
    words = philox.words(counter.astype(np.uint32), philox.key_of("sampling", seed)).astype(np.uint64)
    whole = words[..., 0] << np.uint64(_BITS - 32) | words[..., 1] >> np.uint64(64 - _BITS)
    drawn: np.ndarray = whole.astype(np.float64) / 2.0**_BITS
    return drawn
