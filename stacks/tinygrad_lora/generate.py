"""Writing on from prompts, several at once: the prompts in passes over many columns, then a token at a time.

Shape suffixes: B sequences, T columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from contract.worker.generation import Generated, Sampling
from stacks.tinygrad_lora.decoder import PADDING, Cancelled, Decoder
from stacks.tinygrad_lora.held import Held
from stacks.tinygrad_lora.replay import COMPILING
from stacks.tinygrad_lora.sampling import choose

SEQUENCES = 8
"""Prompts of one batch at most."""

CHUNK = 128
"""Columns of a pass over prompts at most; fewer columns are 16, 32 or 64."""

_SMALLEST = 16
_AHEAD = 256
"""New tokens for which a room has columns to begin with; each time that it is full it doubles, and kernels are made anew."""


class Watcher:
    """Who asked: what is told meanwhile, and whether there is still a use for it."""

    def loading(self, done: int, total: int) -> None:
        """So many sections of the model were read."""

    def compiling(self, done: int, total: int) -> None:
        """Of so many layers the kernels were made."""

    def new(self, ids: Mapping[int, int]) -> None:
        """Sequences gained a token each."""

    def cancelled(self) -> bool:
        """Whether to end early."""
        return False


@dataclass(frozen=True, kw_only=True)
class Done:
    """sequences: one a prompt. compile_seconds: how long it took to make kernels, of the time in all."""

    sequences: tuple[Generated, ...]
    compile_seconds: float


@dataclass(kw_only=True)
class _Row:
    """A sequence: its prompt, the ids that it gained, and why it ended; the number is its place among the prompts."""

    number: int
    prompt: Sequence[int]
    ids: list[int] = field(default_factory=list)
    finish: Literal["stop", "length", "cancelled"] | None = None

    @property
    def length(self) -> int:
        """Its tokens: the position of the next one."""
        return len(self.prompt) + len(self.ids)


def generate(
    held: Held, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: Sequence[int] = (), sampling: Sampling,
    first_sequence: int = 0, watcher: Watcher | None = None,
) -> Done:  # fmt: skip
    """Writes on from each prompt: the same whatever is in its batch, but for rounding.

    Raises:
        ValueError: a prompt has an id beyond the vocabulary, or leaves too few positions; a logit is not finite.
    """
    _require(held, prompts, max_new_tokens)
    watched, columns = watcher or Watcher(), columns_of(max(map(len, prompts)))
    rows = [_Row(number=number, prompt=prompt) for number, prompt in enumerate(prompts)]
    room = power_of_two(columns + min(max_new_tokens, _AHEAD))
    prompt_passes = -(-len(rows) // SEQUENCES) * -(-columns // CHUNK)
    passes = min(prompt_passes, COMPILING) + (COMPILING if max_new_tokens > 1 else 0)
    decoder = Decoder(held, batch=min(len(rows), SEQUENCES), room=room, passes=passes, told=partial(_tell, watched))
    ends = partial(_add, most=max_new_tokens, stop=frozenset(stop))
    pick = partial(_pick, sampling=sampling, first=first_sequence)
    try:
        if max_new_tokens > 1:
            decoder.make(1)
        for start in range(0, len(rows), SEQUENCES):
            decoder.clear()
            _write(decoder, rows[start : start + SEQUENCES], columns, watched, pick, ends)
    except Cancelled:
        pass
    sequences = tuple(Generated(ids=tuple(row.ids), finish=row.finish or "cancelled") for row in rows)
    return Done(sequences=sequences, compile_seconds=decoder.compile_seconds)


def _write(
    decoder: Decoder, rows: Sequence[_Row], columns: int, watcher: Watcher, pick: Callable[..., dict[int, int]], add: Callable[..., None]
) -> None:  # fmt: skip
    """Writes on from the prompts of one batch, to the end of each. Raises: Cancelled."""
    logits_BV = _read(decoder, rows, columns, watcher)
    while True:
        new = pick(logits_BV, rows)
        for place, token in new.items():
            add(rows[place], token)
        watcher.new({rows[place].number: token for place, token in new.items()})
        if all(row.finish for row in rows):
            return
        if watcher.cancelled():
            raise Cancelled
        ids_B1, positions_B1 = _padding(decoder.batch, 1)
        for place, row in enumerate(rows):
            if not row.finish:  # one that ended is padding
                ids_B1[place], positions_B1[place] = row.ids[-1], row.length - 1
        logits_BV = decoder.logits(ids_B1, positions_B1)


def _read(decoder: Decoder, rows: Sequence[_Row], columns: int, watcher: Watcher) -> np.ndarray:
    """The prompts, padded on the left, in passes of CHUNK columns at most; the last pass's logits."""
    ids_BT, positions_BT = _padding(decoder.batch, columns)
    for place, row in enumerate(rows):
        ids_BT[place, columns - row.length :] = row.prompt
        positions_BT[place, columns - row.length :] = np.arange(row.length)
    for start in range(0, columns, CHUNK):
        if watcher.cancelled():
            raise Cancelled
        logits_BV = decoder.logits(ids_BT[:, start : start + CHUNK], positions_BT[:, start : start + CHUNK])
    return logits_BV


def _pick(logits_BV: np.ndarray, rows: Sequence[_Row], *, sampling: Sampling, first: int) -> dict[int, int]:
    """The next token of each row that has not ended, by its place in the batch."""
    places = [place for place, row in enumerate(rows) if not row.finish]
    numbers, lengths = [first + rows[place].number for place in places], [rows[place].length for place in places]
    return dict(zip(places, choose(logits_BV[places], sampling, sequences=numbers, positions=lengths), strict=True))


def _add(row: _Row, token: int, *, most: int, stop: frozenset[int]) -> None:
    row.ids.append(token)
    if token in stop:
        row.finish = "stop"
    elif len(row.ids) == most:
        row.finish = "length"


def _tell(watcher: Watcher, done: int, total: int) -> None:
    watcher.compiling(done, total)
    if watcher.cancelled():
        raise Cancelled


def _padding(batch: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and positions of columns that hold nothing."""
    return np.zeros((batch, columns), np.int64), np.full((batch, columns), PADDING)


def columns_of(longest: int) -> int:
    """Columns for prompts of so many tokens: 16, 32, 64, or a multiple of CHUNK."""
    return min(max(_SMALLEST, power_of_two(longest)), -(-longest // CHUNK) * CHUNK)


def power_of_two(number: int) -> int:
    """The smallest one that is no less."""
    return int(1 << (number - 1).bit_length())


def _require(held: Held, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    vocabulary, positions = held.plan.layout.vocab_size, held.plan.layout.max_position_embeddings
    for number, prompt in enumerate(prompts, start=1):
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(
                f"prompt {number} has ids from {min(prompt)} to {max(prompt)}; allowed: 0 to {vocabulary - 1}; take them from this model's "
                "tokenizer"
            )
        if len(prompt) + max_new_tokens > positions:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, {len(prompt) + max_new_tokens} with max_new_tokens {max_new_tokens}; allowed: "
                f"max_position_embeddings {positions}; lower max_new_tokens, or shorten the prompt"
            )
