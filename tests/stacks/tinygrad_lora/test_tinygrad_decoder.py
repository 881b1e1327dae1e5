"""Cached decoding against the float64 oracle, which has no cache: within what rounding explains, and far outside with a faulty cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from contract.worker import graph
from parity.judge.perturb import Response, respond
from parity.reference.graph import Batch, Trace
from stacks.tinygrad_lora.cache import KeyValueCache
from stacks.tinygrad_lora.decoder import PADDING, Cancelled, Decoder, seen
from stacks.tinygrad_lora.host import to_host
from tests.stacks.tinygrad_lora.tiny_tinygrad_generation import CONFIGS, VOCABULARY, held, plan_of, tensors_of_plan
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import EXP_ULP, RUNS, outside

pytestmark = pytest.mark.usefixtures("cpu")

TOKENS, BEGINS = 12, (0, 5)
"""Of each sequence, and the column that it begins in: before and after it there is padding."""
COLUMNS = TOKENS + max(BEGINS)
IDS = np.random.default_rng(3).integers(0, VOCABULARY, (len(BEGINS), TOKENS))


def decoded(decoder: Decoder, parts: Sequence[int]) -> dict[tuple[int, int], np.ndarray]:
    """(sequence, position) -> the logits there, at the end of each pass; so many columns a pass."""
    ids, positions = np.zeros((len(BEGINS), COLUMNS), np.int64), np.full((len(BEGINS), COLUMNS), PADDING)
    for row, begin in enumerate(BEGINS):
        ids[row, begin : begin + TOKENS], positions[row, begin : begin + TOKENS] = IDS[row], np.arange(TOKENS)
    decoder.clear()
    found: dict[tuple[int, int], np.ndarray] = {}
    for start, columns in zip(np.cumsum((0, *parts)), parts, strict=False):
        end = int(start) + columns
        logits = decoder.logits(ids[:, start:end], positions[:, start:end])
        found |= {(row, int(positions[row, end - 1])): logits[row] for row in range(len(BEGINS)) if positions[row, end - 1] != PADDING}
    return found


def exact(model_type: str, dtype: str) -> tuple[Trace, Response]:
    plan = plan_of(model_type, dtype)
    tensors = tensors_of_plan(plan)
    adapter = {name: tensors[name] for name in graph.adapter(plan)}
    return respond(
        plan, tensors.__getitem__, adapter, Batch(ids=IDS, labels=IDS), runs=RUNS, seed=1, ulp=EXP_ULP, keep=lambda name: name == "logits"
    )


def far(found: dict[tuple[int, int], np.ndarray], expected: tuple[Trace, Response], dtype: str) -> dict[str, float]:
    """What lies outside, and by which factor; what was not decoded counts as right."""
    trace, response = expected
    logits_BTV = trace.taps["logits"].copy()
    for place, logits_V in found.items():
        logits_BTV[place] = logits_V
    return outside({"logits": logits_BTV}, {"logits": trace.taps["logits"]}, response, dtype)


def displaced(decoder: Decoder) -> None:
    """Keys one column further on than they belong."""
    for layer_room in decoder._cache._rooms[::2]:
        layer_room.assign(layer_room[:, :, :1].cat(layer_room[:, :, :-1], dim=2).contiguous().realize()).realize()


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """A Mistral, whose window is shorter than its sequences."""
    return Decoder(held("mistral"), batch=len(BEGINS), room=COLUMNS + 1, passes=2, told=lambda done, total: None)


def test_cached_decoding_is_uncached_decoding(cpu: object, decoder: Decoder) -> None:
    expected = exact("mistral", "float64")
    found = decoded(decoder, (1,) * COLUMNS)
    assert len(found) == 2 * TOKENS
    assert far(found, expected, "float64") == {}
    assert decoder.compile_seconds > 0
    compiled = decoder.compile_seconds
    again = decoded(decoder, (1,) * COLUMNS)  # a second batch: nothing of the first is seen, and every pass is a replay
    assert {place: logits.tobytes() for place, logits in again.items()} == {place: logits.tobytes() for place, logits in found.items()}
    assert decoder.compile_seconds == compiled


def test_a_cleared_decoder_sees_nothing_of_what_it_read(cpu: object, decoder: Decoder) -> None:
    """A token at a late position in the first column, after which the columns hold earlier ones of another batch."""
    found = []
    for column in (0, 1):
        decoded(decoder, (1,) * COLUMNS)
        decoder.logits(IDS[:, column : column + 1], np.array([[0], [0]]))
        decoder.clear()
        found.append(decoder.logits(IDS[:, :1], np.array([[3], [3]])))
    assert found[0].tobytes() == found[1].tobytes()


def test_a_faulty_cache_is_far_outside(cpu: object, decoder: Decoder) -> None:
    """What that test can see."""
    expected = exact("mistral", "float64")
    decoded(decoder, (1,) * (COLUMNS - 1))
    displaced(decoder)
    last = decoder.logits(np.stack((IDS[0, :1], IDS[1, -1:])), np.array([[PADDING], [TOKENS - 1]]))
    [factor] = far({(1, TOKENS - 1): last[1]}, expected, "float64").values()
    assert factor > 1e6


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_architecture_in_passes_of_any_size(model_type: str, dtype: str) -> None:
    """And into a room that doubles when it is full."""
    expected, told = exact(model_type, dtype), list[tuple[int, int]]()
    decoder = Decoder(held(model_type, dtype), batch=2, room=10, passes=4, told=lambda done, total: told.append((done, total)))
    decoder.make(1)
    found = decoded(decoder, (3, 3, 1, 1, 1, 5, 1, 1, 1))
    assert decoder._positions_BS.shape[1] == 20
    assert far(found, expected, dtype) == {}
    assert [done for done, _ in told] == list(range(len(told)))
    assert [total for _, total in told] == [*[8] * 8, 10, 10, 12, 12, 14, 14]  # beyond what was known: in the larger room 5 once, 1 twice


@pytest.mark.nightly
def test_a_bfloat16_cache_holds_bfloat16() -> None:
    decoder = Decoder(held("gpt2", "bfloat16"), batch=2, room=32, passes=2, told=lambda done, total: None)
    assert {logits.dtype.name for logits in decoded(decoder, (3,) * 5).values()} == {"bfloat16"}
    assert {to_host(room).dtype.name for room in decoder._cache._rooms} == {"bfloat16"}


def test_who_cancels_while_kernels_are_made_is_heard() -> None:
    def told(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        Decoder(held("gpt2"), batch=1, room=32, passes=2, told=told).make(1)


def test_what_a_token_sees() -> None:
    """Not what follows, not what holds nothing, not beyond the window; padding sees nothing."""
    queries, keys = np.array([[PADDING, 0, 1]]), np.array([[2**30, 0, 1, 2]])
    assert seen(queries, keys, None)[0, 0].tolist() == [[False] * 4, [False, True, False, False], [False, True, True, False]]
    assert seen(queries, keys, 1)[0, 0, 2].tolist() == [False, False, True, False]


def test_rooms_are_buffers_of_their_own() -> None:
    """Zeros made by tinygrad would all be one constant."""
    cache = KeyValueCache(2, (1, 1, 3, 2), dtype="float32", device="CPU")
    cache._rooms[0].assign(cache._rooms[0] + 1).realize()
    assert [float(to_host(room).sum()) for room in cache._rooms] == [6.0, 0.0, 0.0, 0.0]
