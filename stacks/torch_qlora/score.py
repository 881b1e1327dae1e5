"""The request `score`: the logits of given tokens, of a model and an adapter from disk (contract/worker/score.py).

Shape legend: B sequences, T tokens, S tokens that are scored, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from contract.worker.score import LOGITS, Score, Tokens, require_tokens
from contract.worker.stack import Reply, Tensors
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.generate import CHUNK
from stacks.torch_qlora.graph import Graph, GraphBatch
from stacks.torch_qlora.load import open_model
from stacks.torch_qlora.session import to_host


def respond(values: Mapping[str, Any], tensors: Tensors, device: torch.device) -> Reply:
    """The request's answer.

    Raises:
        ValueError: values or tensors that are no such request.
        ContractError, ContractErrors, MissingError, NotSupported: as `stacks.torch_qlora.load.open_model`.
    """
    request = Score.model_validate(dict(values))
    graph = open_model(request, device).graph
    tokens = require_tokens(request, graph.plan, tensors)
    with torch.no_grad():
        return Reply(tensors={LOGITS: to_host(whole(graph, tokens) if request.prompt is None else cached(graph, tokens, request.prompt))})


def whole(graph: Graph, tokens: Tokens) -> torch.Tensor:
    """Logits [B, T, V] of one pass without a cache."""
    if tokens.plain:
        return graph.logits(graph.hidden(GraphBatch(ids_BT=_tensor(tokens.ids_BT, graph))))
    return graph.logits(graph.hidden(_part(graph, tokens, slice(None))))


def cached(graph: Graph, tokens: Tokens, prompt: int) -> torch.Tensor:
    """Logits [B, S, V] from the prompt's last token on: the prompt in passes of many tokens, then one at a time, as generation goes."""
    cache, length = KeyValueCache(), tokens.ids_BT.shape[1]
    for start in range(0, prompt, CHUNK):
        x_BTD = graph.hidden(_part(graph, tokens, slice(start, min(start + CHUNK, prompt))), cache=cache)
    logits = [graph.logits(x_BTD[:, -1])]
    for token in range(prompt, length):
        x_BTD = graph.hidden(_part(graph, tokens, slice(token, token + 1)), cache=cache)
        logits.append(graph.logits(x_BTD[:, -1]))
    return torch.stack(logits, dim=1)


def _part(graph: Graph, tokens: Tokens, part: slice) -> GraphBatch:
    ids_BT, positions_BT, segments_BT = (
        _tensor(array_BT[:, part], graph) for array_BT in (tokens.ids_BT, tokens.positions_BT, tokens.segments_BT)
    )
    return GraphBatch(ids_BT=ids_BT, positions_BT=positions_BT, segments_BT=segments_BT)


def _tensor(array_BT: np.ndarray, graph: Graph) -> torch.Tensor:
    return torch.from_numpy(np.array(array_BT)).to(graph.device)
