"""Embedding.

Shape suffixes: V vocabulary, T tokens, D width.
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor


def embedding(weight_VD: Tensor, ids_T: Tensor) -> Tensor:
    """weight[ids], bit for bit; its gradient is the sum over the places of an id, however often it comes.

    Args:
        weight_VD: float32 or float64.
        ids_T: int32, from 0 to V - 1: another id would be a row of zeros, or count from the end.
    """
    return weight_VD[ids_T]


def require_ids(ids_T: np.ndarray, *, vocabulary: int) -> None:
    """Sees to it that `embedding` has a row for each id.

    Raises:
        ValueError: an id outside of the vocabulary.
    """
    outside = (ids_T < 0) | (ids_T >= vocabulary)
    if outside.any():
        place = int(outside.argmax())
        raise ValueError(f"ids[{place}] is {int(ids_T[place])}; allowed: 0 to {vocabulary - 1} (the rows of the weight)")
