"""What generation does around a decoder: batches, ends, random numbers, refusals. The decoder is one whose logits a test can compute."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from contract.worker.generation import Sampling
from stacks.tinygrad_lora import generate as generate_module
from stacks.tinygrad_lora.decoder import PADDING
from stacks.tinygrad_lora.generate import Done, Watcher, generate
from stacks.tinygrad_lora.held import Held
from stacks.tinygrad_lora.models.build import build
from tests.stacks.tinygrad_lora.tiny_tinygrad_generation import CONFIGS, VOCABULARY, held, plan_of

GREEDY, WARM = Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=11)
PROMPTS = ((3, 0, 28, 7, 7, 1, 19, 4, 5), (11,), (2, 23, 9, 17), (5, 5, 1, 6, 0, 8, 13, 21, 25, 12, 4, 4, 20))


def logits_after(tokens: Sequence[int]) -> np.ndarray:
    """Of a sequence: they depend on each of its tokens and on its place."""
    return np.random.default_rng(zlib.crc32(bytes(tokens))).standard_normal(VOCABULARY)


class ToyDecoder:
    """Remembers each row's tokens; refuses positions that are not the next ones."""

    made: list[ToyDecoder]

    def __init__(self, of: Held, *, batch: int, room: int, passes: int, told: Callable[[int, int], None]) -> None:
        self.batch, self.room, self.passes, self._told, self.compile_seconds = batch, room, passes, told, 0.25
        self.columns: list[int] = []
        self.made.append(self)
        self.clear()

    def clear(self) -> None:
        self._rows: list[list[int]] = [[] for _ in range(self.batch)]

    def make(self, columns: int) -> None:
        self._told(columns, columns)

    def logits(self, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        self.columns.append(ids_BT.shape[1])
        for row, ids, positions in zip(self._rows, ids_BT, positions_BT, strict=True):
            for token, position in zip(ids, positions, strict=True):
                if position != PADDING:
                    assert position == len(row)
                    row.append(int(token))
        return np.stack([logits_after(row) for row in self._rows])


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    ToyDecoder.made = []
    monkeypatch.setattr(generate_module, "Decoder", ToyDecoder)


MODEL = Held(plan=plan_of("llama"), device="CPU", model=build(plan_of("llama")), tensors={}, embeddings={})


def written(prompts: Sequence[Sequence[int]] = PROMPTS, **more: Any) -> Done:
    return generate(MODEL, prompts, **({"max_new_tokens": 9, "sampling": GREEDY} | more))


def greedy(prompt: Sequence[int], new: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(logits_after(ids).argmax()))
    return tuple(ids[len(prompt) :])


class Recorder(Watcher):
    def __init__(self, until: int = 10**9) -> None:
        self.seen: list[Mapping[int, int]] = []
        self.compiled: list[tuple[int, int]] = []
        self._until = until

    def new(self, ids: Mapping[int, int]) -> None:
        self.seen.append(ids)

    def compiling(self, done: int, total: int) -> None:
        self.compiled.append((done, total))

    def cancelled(self) -> bool:
        return len(self.seen) >= self._until


def test_greedy_is_the_likeliest_token_each_time() -> None:
    done, watcher = written(watcher=(watcher := Recorder())), watcher
    assert [one.ids for one in done.sequences] == [greedy(prompt, 9) for prompt in PROMPTS]
    assert {one.finish for one in done.sequences} == {"length"}
    assert [tuple(new[row] for new in watcher.seen) for row in range(4)] == [one.ids for one in done.sequences]
    assert (done.compile_seconds, watcher.compiled) == (0.25, [(1, 1)])
    [decoder] = ToyDecoder.made
    assert (decoder.columns, decoder.batch, decoder.room, decoder.passes) == ([16, *[1] * 8], 4, 32, 3)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_batch_is_each_alone(sampling: Sampling) -> None:
    """Some end early; the numbers drawn depend on the sequence's own number."""
    whole = written(max_new_tokens=12, sampling=sampling).sequences
    ends = [next(token for token in range(VOCABULARY) if 0 < sum(token in one.ids for one in whole) < len(whole))]
    together = written(max_new_tokens=12, sampling=sampling, stop=ends).sequences
    alone = [
        written([prompt], max_new_tokens=12, sampling=sampling, stop=ends, first_sequence=number).sequences[0]
        for number, prompt in enumerate(PROMPTS)
    ]
    assert list(together) == alone
    assert {one.finish for one in together} == {"stop", "length"}
    for one, longer in zip(together, whole, strict=True):
        assert one.ids == longer.ids[: len(one.ids)]
        assert (one.finish == "stop") == (one.ids[-1] in ends)
        assert not set(one.ids[:-1]) & set(ends)


def test_more_prompts_than_a_batch_takes_and_longer_ones_than_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(sampling=WARM, first_sequence=2).sequences
    monkeypatch.setattr(generate_module, "SEQUENCES", 3)
    monkeypatch.setattr(generate_module, "CHUNK", 5)
    monkeypatch.setattr(generate_module, "_SMALLEST", 2)
    assert written(sampling=WARM, first_sequence=2).sequences == whole
    assert ToyDecoder.made[-1].columns == [*[5] * 3, *[1] * 8] * 2
    assert (ToyDecoder.made[-1].batch, ToyDecoder.made[-1].passes) == (3, 4)


@pytest.mark.parametrize(("longest", "columns"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (128, 128), (129, 256), (300, 384)])
def test_columns_for_prompts(longest: int, columns: int) -> None:
    assert generate_module.columns_of(longest) == columns


def test_sampling_follows_from_its_seed() -> None:
    assert written(sampling=WARM) == written(sampling=WARM) != written(sampling=WARM.model_copy(update={"seed": 12}))
    twins = written([PROMPTS[0]] * 2, sampling=WARM).sequences
    assert twins[0] != twins[1]


def test_cancelling_answers_what_there_is() -> None:
    found = written(watcher=Recorder(until=3)).sequences
    assert [(len(one.ids), one.finish) for one in found] == [(3, "cancelled")] * 4
    assert [one.ids for one in written(watcher=Recorder(until=0)).sequences] == [()] * 4


def test_an_end_that_is_also_the_last_token_allowed_is_an_end() -> None:
    [free] = written([PROMPTS[0]], sampling=WARM).sequences
    last = max(free.ids.index(token) for token in free.ids)
    [found] = written([PROMPTS[0]], max_new_tokens=last + 1, stop=[free.ids[last]], sampling=WARM).sequences
    assert (found.ids, found.finish) == (free.ids[: last + 1], "stop")


def test_one_new_token_needs_no_pass_over_one() -> None:
    watcher = Recorder()
    assert [one.ids for one in written(max_new_tokens=1, watcher=watcher).sequences] == [greedy(prompt, 1) for prompt in PROMPTS]
    assert (ToyDecoder.made[-1].columns, ToyDecoder.made[-1].passes, watcher.compiled) == ([16], 1, [])


def test_what_the_model_has_no_place_for_is_refused() -> None:
    assert len(written([PROMPTS[0]], max_new_tokens=31).sequences[0].ids) == 31
    words = "prompt 1 has 9 tokens, 41 with max_new_tokens 32; allowed: max_position_embeddings 40; lower max_new_tokens"
    with pytest.raises(ValueError, match=words):
        written([PROMPTS[0]], max_new_tokens=32)
    with pytest.raises(ValueError, match="prompt 2 has ids from 3 to 29; allowed: 0 to 28; take them from this model's tokenizer"):
        written([(1,), (3, 29)])


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_whole_model_writes_by_its_own_logits(model_type: str, cpu: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is each alone with the real decoder too, whose shapes differ; the gaps between logits are large here."""
    from stacks.tinygrad_lora.decoder import Decoder

    monkeypatch.setattr(generate_module, "Decoder", Decoder)
    model = held(model_type)
    together = generate(model, PROMPTS, max_new_tokens=8, sampling=WARM).sequences
    alone = [
        generate(model, [prompt], max_new_tokens=8, sampling=WARM, first_sequence=number).sequences[0]
        for number, prompt in enumerate(PROMPTS)
    ]
    assert list(together) == alone
    assert len({one.ids for one in together}) == len(PROMPTS)
