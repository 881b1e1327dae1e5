"""Generation's laws, in float64: cached = uncached, a batch = each alone, merged = base and adapter, sampling as it is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.data.sampling import uniform
from contract.worker.generation import Sampling
from stacks.torch_qlora import cache as cache_module
from stacks.torch_qlora import generate as generate_module
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.generate import choose, generate
from stacks.torch_qlora.merge import merge_graph
from tests.stacks.torch_qlora.tiny_generation import CONFIGS, ORDERS, allowed, cached, graph_of, greedy, ids_of, uncached

GREEDY = Sampling()
WARM = Sampling(temperature=0.8, top_p=0.9, seed=11)
PROMPTS = ((3, 0, 28, 7, 7, 1, 19, 4, 5), (11,), (2, 23, 9, 17), (5, 5, 1, 6, 0, 8, 13, 21, 25, 12, 4, 4, 20))

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture
def _one_thread() -> object:
    """A second thread only waits for work that is this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_cached_decoding_is_uncached_decoding(model_type: str, fused: bool) -> None:
    """Chunks and single tokens, past the window; positions given, or following on what is held."""
    paths = ("fused_attention",) if fused else ()
    graph, ids_BT = graph_of(model_type, paths=paths), ids_of(19)
    whole = uncached(graph, ids_BT)
    limit = allowed(model_type, ids_BT, whole, paths=paths)
    for order in ORDERS:
        found = cached(graph, ids_BT, order)
        assert (found - whole).abs().max() <= limit, order
        assert torch.equal(found, cached(graph, ids_BT, order, positions=False)), order


def shifted(place: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    positions_BS, segments_BS = place
    return positions_BS - 1, segments_BS


@pytest.mark.parametrize("fault", ["keys one place off", "values of the layer before", "the first token is lost"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_wrong_cache_is_far_outside(model_type: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the law can see."""
    graph, ids_BT = graph_of(model_type), ids_of(19)
    whole = uncached(graph, ids_BT)
    limit = allowed(model_type, ids_BT, whole)
    place, appended = KeyValueCache.place, KeyValueCache._appended
    if fault == "keys one place off":
        monkeypatch.setattr(KeyValueCache, "place", lambda self, *given: shifted(place(self, *given)))
    elif fault == "values of the layer before":
        monkeypatch.setattr(KeyValueCache, "_appended", lambda self, key, new: appended(self, (key[0] // 2 * 2, key[1]), new))
    else:

        def forgetful(self: KeyValueCache, key: tuple[int, str], new: torch.Tensor) -> torch.Tensor:
            found = appended(self, key, new).clone()
            found[:, :, 0] = 0
            return found

        monkeypatch.setattr(KeyValueCache, "_appended", forgetful)
    found = cached(graph, ids_BT, ORDERS[1])
    assert (found - whole).abs().max() > 1e6 * limit


@pytest.mark.parametrize("model_type", CONFIGS)
def test_greedy_is_the_likeliest_token_of_a_whole_pass_each_time(model_type: str) -> None:
    graph = graph_of(model_type)
    found = generate(graph, PROMPTS, max_new_tokens=9, sampling=GREEDY)
    assert [one.ids for one in found] == [tuple(greedy(graph, prompt, 9)) for prompt in PROMPTS]
    assert {one.finish for one in found} == {"length"}
    assert len({one.ids for one in found}) == len(PROMPTS)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_batch_is_each_alone(model_type: str, sampling: Sampling) -> None:
    """Prompts of 1 to 13 tokens, some of which end early and leave the batch."""
    graph = graph_of(model_type)
    whole = generate(graph, PROMPTS, max_new_tokens=12, sampling=sampling)
    ends = sorted({one.ids[4] for one in whole[:2]})
    together = generate(graph, PROMPTS, max_new_tokens=12, stop=ends, sampling=sampling)
    alone = [
        generate(graph, [prompt], max_new_tokens=12, stop=ends, sampling=sampling, first_sequence=number)[0]
        for number, prompt in enumerate(PROMPTS)
    ]
    assert together == alone
    assert any(one.finish == "stop" for one in together)
    for one, longer in zip(together, whole, strict=True):
        assert one.ids == longer.ids[: len(one.ids)]
        assert (one.finish == "stop") == (one.ids[-1] in ends)
        assert not set(one.ids[:-1]) & set(ends)


def test_prompts_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("mistral")
    whole = generate(graph, PROMPTS, max_new_tokens=6, sampling=WARM)
    monkeypatch.setattr(generate_module, "CHUNK", 3)
    assert generate(graph, PROMPTS, max_new_tokens=6, sampling=WARM) == whole


def test_more_prompts_than_a_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, seen = graph_of("llama"), []
    whole = generate(graph, PROMPTS, max_new_tokens=5, sampling=WARM, first_sequence=2)
    monkeypatch.setattr(generate_module, "SEQUENCES", 3)
    assert generate(graph, PROMPTS, max_new_tokens=5, sampling=WARM, first_sequence=2, report=seen.append) == whole
    assert [tuple(new[row] for new in seen if row in new) for row in range(4)] == [one.ids for one in whole]
    ended = generate(graph, PROMPTS, max_new_tokens=5, sampling=WARM, cancelled=lambda: True)
    assert [one.finish for one in ended] == ["cancelled"] * 4


@pytest.mark.parametrize(
    ("sampling", "base"), [(GREEDY, None), (WARM, {"block_size": 32, "double_quant": True})], ids=["greedy, plain", "warm, nf4"]
)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_merged_graph_writes_what_base_and_adapter_write(model_type: str, sampling: Sampling, base: dict[str, object] | None) -> None:
    graph = graph_of(model_type, base=base)
    before = generate(graph, PROMPTS, max_new_tokens=10, sampling=sampling)
    merged = merge_graph(graph).tensors
    assert len(merged) == 2 * len(graph.plan.layout.linears)
    assert generate(graph, PROMPTS, max_new_tokens=10, sampling=sampling) == before
    assert graph.plan.targets == frozenset()


def test_the_adapter_is_what_writes() -> None:
    graph = graph_of("llama")
    without = graph_of("llama", lora={"rank": 1, "alpha": 1.0, "targets": ()})
    assert generate(graph, PROMPTS, max_new_tokens=10, sampling=GREEDY) != generate(without, PROMPTS, max_new_tokens=10, sampling=GREEDY)


# Choosing


def by_hand(logits: Sequence[float], sampling: Sampling, u: float) -> int:
    """The rule of contract/data/sampling.py, one number after the other."""
    top = max(logits)
    e = [math.exp((z - top) / sampling.temperature) for z in logits]
    order = sorted(range(len(e)), key=lambda token: (-e[token], token))
    total, sums = 0.0, []
    for token in order:
        total += e[token]
        sums.append(total)
    kept = next(k for k, c in enumerate(sums) if c >= sampling.top_p * total)
    return order[next(k for k, c in enumerate(sums) if c > u * sums[kept])]


@given(
    logits=st.lists(st.sampled_from([-9.0, -1.5, -1.0, 0.0, 0.25, 2.0, 2.5]), min_size=1, max_size=12),
    temperature=st.sampled_from([0.25, 1.0, 3.0]), top_p=st.sampled_from([1e-9, 0.3, 0.75, 1.0]), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_a_token_is_drawn_by_the_rule(logits: list[float], temperature: float, top_p: float, seed: int) -> None:
    """Many equal logits: of those the lower id stands first."""
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    u = uniform(seed=seed, sequences=np.array([3]), positions=np.array([8]))
    got = choose(torch.tensor([logits], dtype=torch.float64), sampling, sequences=[3], positions=[8])
    assert got == [by_hand(logits, sampling, float(u[0]))]
    if top_p == 1e-9:
        assert got == choose(torch.tensor([logits]), GREEDY, sequences=[0], positions=[0])


def test_a_number_on_the_border_draws_the_token_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "uniform", lambda **_: np.array([0.5]))
    assert choose(torch.zeros(1, 4), Sampling(temperature=1.0), sequences=[0], positions=[0]) == [2]


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_as_temperature_falls_to_zero_drawing_becomes_greedy(temperature: float) -> None:
    graph = graph_of("qwen3")
    cold = Sampling(temperature=temperature, seed=5)
    assert generate(graph, PROMPTS, max_new_tokens=8, sampling=cold) == generate(graph, PROMPTS, max_new_tokens=8, sampling=GREEDY)


def test_sampling_follows_from_its_seed() -> None:
    graph = graph_of("gpt2")
    once, again = (generate(graph, PROMPTS, max_new_tokens=8, sampling=WARM) for _ in range(2))
    assert once == again
    assert once != generate(graph, PROMPTS, max_new_tokens=8, sampling=WARM.model_copy(update={"seed": 12}))
    twins = generate(graph, [PROMPTS[0]] * 2, max_new_tokens=8, sampling=WARM)
    assert twins[0] != twins[1]  # each sequence has numbers of its own


def test_of_equal_logits_greedy_takes_the_lowest_id() -> None:
    assert choose(torch.tensor([[1.0, 4.0, 4.0], [0.0, 0.0, 0.0]]), GREEDY, sequences=[0, 1], positions=[0, 0]) == [1, 0]


# Ends and refusals


def test_cancelling_answers_what_there_is() -> None:
    graph, seen = graph_of("llama"), []
    found = generate(graph, PROMPTS, max_new_tokens=20, sampling=GREEDY, report=seen.append, cancelled=lambda: len(seen) == 3)
    assert [(len(one.ids), one.finish) for one in found] == [(3, "cancelled")] * 4
    assert [tuple(new[row] for new in seen) for row in range(4)] == [one.ids for one in found]
    assert generate(graph, PROMPTS, max_new_tokens=2, sampling=GREEDY, cancelled=lambda: True)[0].ids == ()


def test_an_end_that_is_also_the_last_token_allowed_is_an_end() -> None:
    graph, (prompt, *_) = graph_of("llama"), PROMPTS
    (free,) = generate(graph, [prompt], max_new_tokens=12, sampling=WARM)
    last = max(free.ids.index(token) for token in free.ids)
    (found,) = generate(graph, [prompt], max_new_tokens=last + 1, stop=(28, free.ids[last]), sampling=WARM)
    assert (found.ids, found.finish) == (free.ids[: last + 1], "stop")
    assert 28 not in free.ids


def test_positions_beyond_the_model_s_are_refused() -> None:
    graph = graph_of("llama")
    assert len(generate(graph, [PROMPTS[0]], max_new_tokens=31, sampling=GREEDY)[0].ids) == 31
    with pytest.raises(
        ValueError, match="prompt 1 has 9 tokens, 41 with max_new_tokens 32; allowed: max_position_embeddings 40; lower max_new_tokens"
    ):
        generate(graph, [PROMPTS[0]], max_new_tokens=32, sampling=GREEDY)


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 2 has ids from 3 to 29; allowed: 0 to 28; take them from this model's tokenizer"):
        generate(graph_of("llama"), [(1,), (3, 29)], max_new_tokens=1, sampling=GREEDY)


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(spoilt: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = spoilt
    with pytest.raises(ValueError, match="the logits for position 6 of sequence 4 hold NaN or infinity; allowed: finite ones; look into"):
        choose(logits, GREEDY, sequences=[3, 4, 5], positions=[9, 6, 9])


def test_a_cache_grows_by_doubling() -> None:
    """Each token is copied twice at most."""
    held, rooms = KeyValueCache(), []
    for step in range(33):
        new = torch.full((1, 1, 1, 1), float(step))
        held.place(torch.tensor([[step]]))
        k, v = held.extend(0, new, -new)
        assert k.flatten().tolist() == [float(place) for place in range(step + 1)]
        assert torch.equal(v, -k)
        rooms.append(k.untyped_storage().nbytes())
    assert len(set(rooms)) <= 6
    assert cache_module.__doc__


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_bfloat16_graph_writes_from_what_its_logits_hold(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal logits, which are many in bfloat16, the lowest id."""
    logits: list[torch.Tensor] = []

    def watched(logits_BV: torch.Tensor, *given: Any, **more: Any) -> list[int]:
        logits.append(logits_BV)
        return choose(logits_BV, *given, **more)

    monkeypatch.setattr(generate_module, "choose", watched)
    [found] = generate(graph_of(model_type, "bfloat16"), [PROMPTS[0]], max_new_tokens=6, sampling=GREEDY)
    assert {it.dtype for it in logits} == {torch.bfloat16}
    assert list(found.ids) == [int((it[0] == it[0].max()).nonzero()[0]) for it in logits]
