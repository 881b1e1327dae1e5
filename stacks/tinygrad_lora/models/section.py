"""What the sections of a graph have in common, whatever the architecture: the types of their functions, and what a pass shares.

A section is a function of the residual stream that enters it, of its tensors by name, and of a hook that sees each tap
(contract.worker.taps) and may put another value in its place. Sizes that divide, and eps, are tensors of shape [1]: a number would
become part of the kernel, rounded as its reciprocal and compiled anew for each value.

Shape suffixes: B sequences, T tokens, S tokens that are looked at, D hidden_size, V vocab_size, K num_key_value_heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tinygrad import Tensor

from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.loss import next_token_loss
from stacks.tinygrad_lora.widen import wide

Hook = Callable[[str, Tensor], Tensor]
"""(tap, value as computed) -> what the graph is to go on with."""

Tensors = Mapping[str, Tensor]

TOKENS, PLACES = "token_rows", "position_rows"
"""What `embed` takes: the embedding's rows [B, T, D], and GPT-2's rows of the positions, [T, D] or [B, T, D]."""


class KeyValueCache(Protocol):
    """Keys and values of the tokens before these, layer by layer."""

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Adds those of a pass's tokens; answers all, [B, K, S, E]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What all blocks of one pass share.

    Attributes:
        seen: layer -> whether a token sees another, bool, [T, S] or [B, 1, T, S]; the layer's window is in it.
        cos, sin: RoPE's, [T, E], or [B, T, E] where each sequence has positions of its own; None without RoPE.
        cache: where tokens before these were computed already.
    """

    seen: Callable[[int], Tensor]
    cos: Tensor | None = None
    sin: Tensor | None = None
    cache: KeyValueCache | None = None


class Block(Protocol):
    """A block: its output [B, T, D]; `layer` tells it from others for its window and its place in a cache alone."""

    def __call__(self, x_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook, layer: int, shared: Pass) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """One plan's graph, section by section; the tensors of a section are named as contract.worker.graph does, without its prefix.

    Attributes:
        embed: (TOKENS, with GPT-2 PLACES; hook) -> what enters the first block.
        block: of every layer.
        finish: (x [B, T, D], tensors, hook) -> what the head's product takes: final_norm, or the proxy graph's `scaled`.
        project: (that, tensors, linears, hook) -> logits [.., V]; any number of rows.
        scalars: section -> the numbers that it takes as tensors of shape [1], in the dtype `widen.inside`; LoRA's NAME.scaling too.
        places: (positions, int64 [T] or [B, T]) -> the constants of blocks that depend on them, in the plan's dtype:
            rope.cos, rope.sin [.., T, E], or nothing.
        out_features: O of each linear.
    """

    embed: Callable[[Tensors, Hook], Tensor]
    block: Block
    finish: Callable[[Tensor, Tensors, Hook], Tensor]
    project: Callable[[Tensor, Tensors, Linears, Hook], Tensor]
    scalars: Callable[[str], dict[str, float]]
    places: Callable[[np.ndarray], dict[str, np.ndarray]]
    out_features: Mapping[str, int]

    def head(self, x_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook) -> None:
        """The logits, and where there are labels the mean of -log softmax(logits[b, t])[labels[b, t + 1]].

        Args:
            tensors: also what `stacks.tinygrad_lora.loss.next_tokens` makes of labels.
        """
        logits_BTV = self.project(self.finish(x_BTD, tensors, hook), tensors, linears, hook)
        if "next_token" in tensors:
            hook("loss", next_token_loss(wide(logits_BTV), tensors["next_token"], tensors["counted"], tensors["count"]))
