"""Generation: one token after the other, each chosen from the logits of the last, with keys and values kept.

Sequences of different lengths share a batch: shorter prompts are padded on the left, and what stands there sees nothing and is seen by
none. A sequence that has ended leaves the batch.

Shape legend: B sequences, T tokens, D hidden_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from contract.data.batches import PADDING
from contract.data.sampling import uniform
from contract.worker.generation import Generated, Sampling
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.graph import Graph, GraphBatch

CHUNK = 256
"""Tokens of the prompts that are computed at once: the scores of more would need memory with the square of their number."""

SEQUENCES = 16
"""Sequences of a batch at most: their keys and values are all held at once."""

Report = Callable[[Mapping[int, int]], None]
"""Told the new token of each sequence that gained one, by the sequence's place among the prompts."""


def generate(
    graph: Graph,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int] = (),
    sampling: Sampling,
    first_sequence: int = 0,
    report: Report = lambda new: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Generated]:
    """Writes on from prompts; contract/worker/generation.py says what each argument means.

    Raises:
        ValueError: an id that is not in the vocabulary; more positions than the model has; logits that are NaN or infinite.
    """
    _require_fit(graph, prompts, max_new_tokens)
    found: list[Generated] = []
    for start in range(0, len(prompts), SEQUENCES):
        found += _together(
            graph,
            prompts[start : start + SEQUENCES],
            max_new_tokens=max_new_tokens,
            stop=stop,
            sampling=sampling,
            first_sequence=first_sequence + start,
            report=partial(_report_from, report, start),
            cancelled=cancelled,
        )
    return found


def _report_from(report: Report, start: int, new: Mapping[int, int]) -> None:
    report({start + row: token for row, token in new.items()})


def _together(
    graph: Graph,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    sampling: Sampling,
    first_sequence: int,
    report: Report,
    cancelled: Callable[[], bool],
) -> list[Generated]:
    """`generate` for the sequences of one batch."""
    found: list[list[int]] = [[] for _ in prompts]
    ended: dict[int, Generated] = {}
    live = list(range(len(prompts)))
    cache, batch = KeyValueCache(), _left_padded(prompts, graph.device)
    with torch.no_grad():
        while live:
            x_BD = _last_hidden(graph, batch, cache, cancelled)
            if x_BD is None or cancelled():
                return [ended.get(row) or Generated(ids=tuple(found[row]), finish="cancelled") for row in range(len(prompts))]
            places = [len(prompts[row]) + len(found[row]) for row in live]
            chosen = choose(graph.logits(x_BD), sampling, sequences=[first_sequence + row for row in live], positions=places)
            for row, token in zip(live, chosen, strict=True):
                found[row].append(token)
                if token in stop or len(found[row]) == max_new_tokens:
                    ended[row] = Generated(ids=tuple(found[row]), finish="stop" if token in stop else "length")
            report(dict(zip(live, chosen, strict=True)))
            kept = [place for place, row in enumerate(live) if row not in ended]
            if 0 < len(kept) < len(live):
                cache.select(torch.tensor(kept, device=graph.device))
            live = [live[place] for place in kept]
            batch = _next(graph.device, [chosen[place] for place in kept], [places[place] for place in kept])
    return [ended[row] for row in range(len(prompts))]


def choose(logits_BV: torch.Tensor, sampling: Sampling, *, sequences: Sequence[int], positions: Sequence[int]) -> list[int]:
    """The next token of each sequence, by the rule of contract/data/sampling.py; on the host in float64.

    Raises:
        ValueError: logits that are NaN or infinite.
    """
    logits_BV = logits_BV.cpu().double()
    if not torch.isfinite(logits_BV).all():
        row = int((~torch.isfinite(logits_BV)).any(dim=1).nonzero()[0])
        raise ValueError(
            f"generate: the logits for position {positions[row]} of sequence {sequences[row]} hold NaN or infinity; allowed: finite ones; "
            "look into the weights and the adapter for them (finetune preflight --scan), or take dtype float32"
        )
    if sampling.temperature == 0:
        return [_first_of(logits_V == logits_V.max()) for logits_V in logits_BV]
    u_B = uniform(seed=sampling.seed, sequences=np.array(sequences, np.int64), positions=np.array(positions, np.int64))
    return [_drawn(logits_V, sampling, u) for logits_V, u in zip(logits_BV, u_B.tolist(), strict=True)]


def _drawn(logits_V: torch.Tensor, sampling: Sampling, u: float) -> int:
    # The difference first: a temperature near 0 must not turn two infinities into a NaN.
    e_V = ((logits_V - logits_V.max()) / sampling.temperature).exp()
    e_V, ids_V = e_V.sort(descending=True, stable=True)  # stable: of equal ones the lower id stays first
    c_V = e_V.cumsum(dim=0)
    kept = _first_of(c_V >= sampling.top_p * c_V[-1])
    return int(ids_V[_first_of(c_V > u * c_V[kept])])


def _first_of(true_V: torch.Tensor) -> int:
    """The first place that is True; there is one."""
    return int(true_V.nonzero()[0])


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> GraphBatch:
    width = max(map(len, prompts))
    ids_BT, positions_BT = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    segments_BT = np.full((len(prompts), width), PADDING, np.int64)
    for row, prompt in enumerate(prompts):
        part = row, slice(width - len(prompt), None)
        ids_BT[part], positions_BT[part], segments_BT[part] = prompt, np.arange(len(prompt)), 0
    return GraphBatch(
        ids_BT=torch.from_numpy(ids_BT).to(device),
        labels_BT=None,
        positions_BT=torch.from_numpy(positions_BT).to(device),
        segments_BT=torch.from_numpy(segments_BT).to(device),
    )


def _next(device: torch.device, ids: Sequence[int], positions: Sequence[int]) -> GraphBatch:
    """One new token of each sequence."""
    ids_B1, positions_B1 = (torch.tensor(values, dtype=torch.int64, device=device)[:, None] for values in (ids, positions))
    return GraphBatch(ids_BT=ids_B1, labels_BT=None, positions_BT=positions_B1, segments_BT=torch.zeros_like(ids_B1))


def _last_hidden(graph: Graph, batch: GraphBatch, cache: KeyValueCache, cancelled: Callable[[], bool]) -> torch.Tensor | None:
    """x [B, D] of the last token of each sequence, CHUNK tokens at a time; None where it was cancelled on the way."""
    assert batch.positions_BT is not None
    assert batch.segments_BT is not None
    x_BTD = None
    for start in range(0, batch.ids_BT.shape[1], CHUNK):
        if cancelled():
            return None
        part = slice(start, start + CHUNK)
        x_BTD = graph.hidden(
            GraphBatch(
                ids_BT=batch.ids_BT[:, part],
                labels_BT=None,
                positions_BT=batch.positions_BT[:, part],
                segments_BT=batch.segments_BT[:, part],
            ),
            cache=cache,
        )
    assert x_BTD is not None
    return x_BTD[:, -1]


def _require_fit(graph: Graph, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    layout = graph.plan.layout
    for row, prompt in enumerate(prompts):
        if not 0 <= min(prompt) <= max(prompt) < layout.vocab_size:
            raise ValueError(
                f"generate: prompt {row + 1} has ids from {min(prompt)} to {max(prompt)}; allowed: 0 to {layout.vocab_size - 1}; take them "
                "from this model's tokenizer"
            )
        if len(prompt) + max_new_tokens > layout.max_position_embeddings:
            raise ValueError(
                f"generate: prompt {row + 1} has {len(prompt)} tokens, {len(prompt) + max_new_tokens} with max_new_tokens "
                f"{max_new_tokens}; allowed: max_position_embeddings {layout.max_position_embeddings}; lower max_new_tokens, or shorten it"
            )
