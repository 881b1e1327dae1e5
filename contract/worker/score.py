"""The request `score`: the logits of given tokens, of a model and an adapter that are named by their files.

Values are those of `Score`; tensors are `ids` [B, T] and, where sequences are packed or padded, `positions` and `segments`, int64, as
contract/data/batches.py has them. The answer is `logits` [B, S, V] in the dtype that was asked for: S = T, or T - prompt + 1 through the
cache. The files are opened as `generate` opens them (contract/artifacts/opening.py), and the open graph is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from contract.data.batches import PADDING
from contract.worker.generation import Opens
from contract.worker.graph import POSITIONS, SEGMENTS, Expected, Invalid, require_batch
from contract.worker.plan import GraphPlan

LOGITS = "logits"


class Score(Opens):
    """What is to be scored.

    prompt: None: all tokens in one pass. Else as `generate` reads and writes: the first so many tokens of each sequence as a prompt,
        then one at a time, with keys and values of those before in a cache; logits are answered from the prompt's last token on.
    """

    prompt: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What is scored, int64 [B, T] each; a token of padding has the segment PADDING."""

    ids_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray

    @property
    def plain(self) -> bool:
        """Whether positions count from 0 and all is one segment without padding."""
        return not self.segments_BT.any() and bool(np.all(self.positions_BT == np.arange(self.ids_BT.shape[1])))


def require_tokens(request: Score, plan: GraphPlan, tensors: Mapping[str, np.ndarray]) -> Tokens:
    """The request's tokens, with positions and segments where they were not given.

    Raises:
        Invalid: tensors that are not the request's, or not a batch of the model; through the cache, packed sequences, padding that is
            not on the left, or a prompt that is not part of the tokens.
    """
    strange = sorted(set(tensors) - {"ids", POSITIONS, SEGMENTS})
    if strange or "ids" not in tensors:
        raise Invalid(f"score: got {', '.join(sorted(tensors)) or 'no tensors'}; give ids, and positions and segments of padded ones")
    ids_BT = tensors["ids"]
    require_batch(plan, ids_BT, None, tensors.get(POSITIONS), tensors.get(SEGMENTS))
    positions_BT = tensors.get(POSITIONS, np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape))
    tokens = Tokens(ids_BT=ids_BT, positions_BT=positions_BT, segments_BT=tensors.get(SEGMENTS, np.zeros_like(ids_BT)))
    if request.prompt is not None:
        _require_one_text(tokens, request.prompt)
    return tokens


def _require_one_text(tokens: Tokens, prompt: int) -> None:
    """Holds what goes through the cache against what `generate` puts there."""
    length, segments_BT = tokens.ids_BT.shape[1], tokens.segments_BT
    if prompt > length:
        raise Invalid(f"score: prompt is {prompt}; allowed: 1 to {length}, the tokens of a sequence")
    if segments_BT.max() > 0 or (np.diff(segments_BT, axis=1) < 0).any() or (segments_BT[:, -1] == PADDING).any():
        raise Invalid(
            f"score: with a prompt, segments are 0, or {PADDING} for padding on the left: the cache holds one text a sequence; "
            "leave prompt out for packed sequences"
        )
    held_BT = segments_BT != PADDING
    if (tokens.positions_BT != np.cumsum(held_BT, axis=1) - 1)[held_BT].any():
        raise Invalid("score: with a prompt, positions count from 0 after the padding, one by one; leave prompt out for others")


def expected_score(request: Score, plan: GraphPlan, shape: tuple[int, int]) -> Expected:
    """What is answered: `logits`.

    Args:
        shape: [B, T] of the ids.
    """
    sequences, tokens = shape
    scored = tokens if request.prompt is None else tokens - request.prompt + 1
    return {LOGITS: ((sequences, scored, plan.layout.vocab_size), request.dtype)}
