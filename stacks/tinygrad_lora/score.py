"""The request `score`: the logits of given tokens, of a model and an adapter from disk (contract/worker/score.py).

Whole, section by section as an open graph computes them; or through the cache, as generation reads a prompt and then writes.

Shape suffixes: B sequences, T tokens, S tokens that are scored, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.opening import named
from contract.data.batches import PADDING as NO_SEGMENT
from contract.worker import taps
from contract.worker.plan import GraphPlan
from contract.worker.score import LOGITS, Score, Tokens, require_tokens
from contract.worker.stack import Reply, Tensors
from contract.worker.taps import EMBEDDING, HEAD
from stacks.tinygrad_lora.decoder import PADDING, Decoder
from stacks.tinygrad_lora.generate import CHUNK, columns_of, power_of_two
from stacks.tinygrad_lora.graph import SEEN, Sections
from stacks.tinygrad_lora.held import Held, hold
from stacks.tinygrad_lora.replay import COMPILING
from stacks.tinygrad_lora.visible import visible
from stacks.tinygrad_lora.weights import Weights, of_checkpoint


def respond(values: Mapping[str, Any], tensors: Tensors, device: str, *, require: Callable[[GraphPlan], None] = lambda plan: None) -> Reply:
    """The request's answer.

    Args:
        require: raises NotSupported for a plan that the stack, or its device, can't open.

    Raises:
        ValueError: values or tensors that are no such request.
        ContractError, ContractErrors, MissingError: as `contract.artifacts.opening.named`.
    """
    request = Score.model_validate(dict(values))
    files = named(request)
    require(files.plan)
    tokens = require_tokens(request, files.plan, tensors)
    source = Weights(files.plan, of_checkpoint(files.checkpoint), device)
    held = hold(files.plan, source, {} if files.adapter is None else tensors_of(files.adapter), device)
    return Reply(tensors={LOGITS: whole(held, tokens) if request.prompt is None else through_the_cache(held, tokens, request.prompt)})


def whole(held: Held, tokens: Tokens) -> np.ndarray:
    """Logits [B, T, V] of one pass without a cache."""
    layout, sections = held.plan.layout, Sections(held.plan, held.device)
    length = tokens.ids_BT.shape[1]
    positions, segments_BT = (np.arange(length), None) if tokens.plain else (tokens.positions_BT, tokens.segments_BT)
    x_BTD = sections.run(EMBEDDING, {}, held.rows(tokens.ids_BT, positions), wanted=lambda name: True)[taps.entering(layout)]
    constants = held.model.places(positions)
    for layer in range(layout.num_hidden_layers):
        seen = visible(length, window=layout.window(layer), segments_BT=segments_BT)
        given = {"input": x_BTD, SEEN: seen, **constants}
        x_BTD = sections.run(f"layers.{layer}", held.tensors[f"layers.{layer}"], given, wanted=lambda name: name == "output")["output"]
    return sections.run(HEAD, held.tensors[HEAD], {"input": x_BTD}, wanted=lambda name: name == LOGITS)[LOGITS]


def through_the_cache(held: Held, tokens: Tokens, prompt: int) -> np.ndarray:
    """Logits [B, S, V] from the prompt's last token on: the prompt in passes of many columns, then a token at a time."""
    sequences, length = tokens.ids_BT.shape
    columns = columns_of(prompt)
    left = ((0, 0), (columns - prompt, 0))  # as generation pads what it reads
    ids_BT = np.pad(tokens.ids_BT, left)
    positions_BT = np.pad(np.where(tokens.segments_BT == NO_SEGMENT, PADDING, tokens.positions_BT), left, constant_values=PADDING)
    room = power_of_two(columns + length - prompt + 1)
    decoder = Decoder(held, batch=sequences, room=room, passes=2 * COMPILING, told=lambda done, total: None)
    if length > prompt:
        decoder.make(1)
    starts = (*range(0, columns, CHUNK), *range(columns, ids_BT.shape[1]), ids_BT.shape[1])
    passes = [slice(start, min(start + CHUNK, stop)) for start, stop in pairwise(starts)]
    logits = [decoder.logits(ids_BT[:, part], positions_BT[:, part]) for part in passes]
    return np.stack(logits[-(length - prompt + 1) :], axis=1)
