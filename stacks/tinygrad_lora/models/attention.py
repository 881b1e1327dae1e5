"""Attention inside a block, from the heads of q, k and v to the context: the same in every architecture.

Shape suffixes: B sequences, T tokens, S tokens that are looked at, H num_attention_heads, K num_key_value_heads, E head_dim, Q = H E.
"""

from __future__ import annotations

from tinygrad import Tensor

from stacks.tinygrad_lora import attention, rope
from stacks.tinygrad_lora.models.section import Hook, Pass, Tensors


def heads(x_BTQ: Tensor, count: int) -> Tensor:
    """[B, H, T, E]: what lay side by side."""
    B, T, Q = (int(size) for size in x_BTQ.shape)
    return x_BTQ.reshape(B, T, count, Q // count).transpose(1, 2)


def turned(x_BHTE: Tensor, shared: Pass) -> Tensor:
    """RoPE at the positions of the pass."""
    cos, sin = shared.cos, shared.sin
    assert cos is not None, "a block with RoPE is given its tables"
    assert sin is not None
    own = len(cos.shape) == 3  # each sequence has its own, and all its heads have the same
    return rope.rotate(x_BHTE, cos.unsqueeze(1) if own else cos, sin.unsqueeze(1) if own else sin)


def attend(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, tensors: Tensors, hook: Hook, layer: int, shared: Pass) -> Tensor:
    """softmax(q k^T / score_divisor) v over what each token sees, the heads side by side, [B, T, Q].

    Args:
        tensors: score_divisor [1].
    """
    if shared.cache is not None:
        k_BKTE, v_BKTE = shared.cache.extend(layer, k_BKTE, v_BKTE)
    scores_BHTS = hook("scores", attention.scores(q_BHTE, k_BKTE, divisor_1=tensors["score_divisor"]))
    weights_BHTS = hook("weights", attention.masked_softmax(scores_BHTS, shared.seen(layer)))
    B, H, T, E = (int(size) for size in q_BHTE.shape)
    return hook("context", attention.context(weights_BHTS, v_BKTE).transpose(1, 2).reshape(B, T, H * E))
