"""Token embedding.

Legend: L any dimensions (sequences, tokens), V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import nn


def embedding(ids_L: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """y = weight[ids], [L, D]; the ids lie in the vocabulary."""
    return nn.functional.embedding(ids_L, weight_VD)


def require_in_vocabulary(ids_L: torch.Tensor, vocabulary: int) -> None:
    """Refuses ids outside the vocabulary: CUDA's kernel stops the whole process on one, so it is looked for first.

    Raises:
        ValueError: there is one.
    """
    outside = ((ids_L < 0) | (ids_L >= vocabulary)).nonzero()
    if len(outside):
        place = outside[0].tolist()
        raise ValueError(
            f"embedding: ids{place} is {int(ids_L[tuple(place)])}; allowed are 0 to {vocabulary - 1} (the weight has {vocabulary} rows); "
            "take ids from this model's tokenizer"
        )
