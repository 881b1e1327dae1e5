"""How a token is chosen from logits: the rule of contract/data/sampling.py, on the host in float64.

Shape suffixes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contract.data.sampling import uniform
from contract.worker.generation import Sampling


def choose(logits_BV: np.ndarray, sampling: Sampling, *, sequences: Sequence[int], positions: Sequence[int]) -> list[int]:
    """The next token of each sequence.

    Args:
        logits_BV: float32, float64 or bfloat16.
        sequences: each one's number; of it and of its position the random number depends that draws its token.
        positions: where the token will stand, the prompt's tokens counted.

    Raises:
        ValueError: a logit is NaN or infinite.
    """
    wide_BV = logits_BV.astype(np.float64)
    sound_B = np.isfinite(wide_BV).all(axis=-1)
    if not sound_B.all():
        bad = int(np.argmin(sound_B))
        raise ValueError(
            f"the logits for position {positions[bad]} of sequence {sequences[bad]} hold NaN or infinity; allowed: finite ones; look into "
            "the weights and the adapter for such values"
        )
    if sampling.temperature == 0:
        return [int(token) for token in wide_BV.argmax(axis=-1)]  # of equal ones the first, which is the lowest id
    numbers_B = uniform(seed=sampling.seed, sequences=np.array(sequences, dtype=np.int64), positions=np.array(positions))
    return [_drawn(logits_V, sampling, float(u)) for logits_V, u in zip(wide_BV, numbers_B, strict=True)]


def _drawn(logits_V: np.ndarray, sampling: Sampling, u: float) -> int:
    with np.errstate(over="ignore"):  # a small temperature: what is far below the largest becomes -inf, and its exponential 0
        e_V = np.exp((logits_V - logits_V.max()) / sampling.temperature)
    order_V = np.argsort(-e_V, kind="stable")
    c_V = np.cumsum(e_V[order_V])  # one after the other
    kept = 1 + int(np.argmax(c_V >= sampling.top_p * c_V[-1])) if sampling.top_p < 1 else len(c_V)
    return int(order_V[np.argmax(c_V > u * c_V[kept - 1])])
