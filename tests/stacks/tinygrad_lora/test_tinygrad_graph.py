"""The tinygrad stack's graph: every tap and gradient against the float64 oracle, within what rounding explains."""

from __future__ import annotations

import numpy as np
import pytest

from contract.worker import graph, taps
from contract.worker.plan import Lora
from contract.worker.taps import EMBEDDING, HEAD
from parity.judge.perturb import respond, respond_section
from parity.reference.graph import Batch
from stacks.tinygrad_lora.elementary import sigmoid
from stacks.tinygrad_lora.graph import LARGEST, _kept, sections_of
from stacks.tinygrad_lora.host import to_device
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.session import Session
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import (
    EXP_ULP,
    LAYOUT,
    RUNS,
    all_taps,
    batch_of,
    block_request,
    oracle_of,
    outside,
    plan_of,
    tensors_of,
)  # fmt: skip

TENSORS = tensors_of(plan_of())
ADAPTER = {name: TENSORS[name] for name in graph.adapter(plan_of())}


@pytest.fixture(scope="module", params=["float64", "float32"])
def session(request: pytest.FixtureRequest) -> Session:
    TinygradLora("CPU")
    return Session(plan_of(request.param), TENSORS, device="CPU", channel=None)


@pytest.fixture(scope="module")
def double() -> Session:
    TinygradLora("CPU")
    return Session(plan_of(), TENSORS, device="CPU", channel=None)


def test_the_whole_graph(session: Session) -> None:
    plan = session.plan
    got = session.gradients(all_taps(plan), batch_of())
    trace, response = respond(plan, TENSORS.__getitem__, ADAPTER, Batch(**batch_of()), runs=RUNS, seed=1, ulp=EXP_ULP)
    exact = trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}
    assert set(got) == set(exact)
    assert {value.dtype.name for value in got.values()} == {plan.dtype}
    assert outside(got, exact, response, plan.dtype) == {}
    assert all(gradient.any() for name, gradient in exact.items() if name.startswith("grad."))


def test_a_bug_of_1e_7_would_be_seen(double: Session) -> None:
    plan = double.plan
    got = double.gradients(all_taps(plan), batch_of())
    spoilt = TENSORS | {"layers.0.q_proj": (TENSORS["layers.0.q_proj"].astype(np.float64) * (1 + 1e-7))}
    trace, response = respond(plan, spoilt.__getitem__, ADAPTER, Batch(**batch_of()), runs=RUNS, seed=1, ulp=EXP_ULP)
    exact = trace.taps | {f"grad.{name}": gradient for name, gradient in trace.grads.items()}
    factors = outside(got, exact, response, plan.dtype)
    assert {"layers.0.q_proj.base", "logits", "grad.layers.1.down_proj.lora_b"} <= set(factors)
    assert "layers.0.attention_norm" not in factors


def test_a_replay_is_the_function_that_was_captured(double: Session) -> None:
    """The first request computes and captures, the second captures or replays, the third replays: the same bits."""
    first, *others = (double.gradients(all_taps(double.plan), batch_of()) for _ in range(3))
    for other in others:
        for name, value in first.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_another_graph_of_the_same_plan_is_answered_as_if_it_were_the_first(cpu: TinygradLora) -> None:
    """Its functions are those that the graphs before it had captured; its weights and its adapter are its own."""
    plan = plan_of(layout=LAYOUT.model_copy(update={"num_hidden_layers": 1}), lora=Lora(rank=2, alpha=3.0, targets=("q_proj",)))
    before, opened = _kept.cache_info().misses, []
    for seed in (7, 8, 8, 8, 7):
        session = Session(plan, tensors_of(plan, seed), device="CPU", channel=None)
        opened.append(session.gradients(["logits", "loss"], batch_of()))
    assert _kept.cache_info().misses == before + 1
    assert all(array.tobytes() == opened[-1][name].tobytes() for name, array in opened[0].items())
    assert opened[0]["loss"] != opened[1]["loss"]


def test_a_large_graph_keeps_nothing_of_its_functions(double: Session) -> None:
    plan = double.plan
    assert sections_of(plan, "CPU", weights=LARGEST) is sections_of(plan, "CPU", weights=LARGEST)
    assert sections_of(plan, "CPU", weights=LARGEST + 1) is not sections_of(plan, "CPU", weights=LARGEST + 1)


def test_a_tap_is_the_same_whichever_are_wanted(double: Session) -> None:
    every, few = double.forward(all_taps(double.plan), batch_of()), ["layers.0.weights", "layers.1.gated", "loss"]
    for name, value in double.forward(few, batch_of()).items():
        np.testing.assert_array_equal(value, every[name], err_msg=name)


@pytest.mark.parametrize("section", ["layers.1", HEAD])
@pytest.mark.parametrize(("overrides", "bars"), [(0.0, 1.0), (0.4, 0.4), (1.0, 1.0)])
def test_a_block_on_given_inputs(double: Session, section: str, overrides: float, bars: float) -> None:
    """Three requests of other values: the third is a replay, and so must read nothing of the first two."""
    plan = double.plan
    for seed in range(3):
        request = block_request(plan, section, overrides=overrides, bars=bars, seed=seed)
        got = double.block(section, request)
        exact, response = respond_section(plan, section, TENSORS.__getitem__, ADAPTER, request, runs=RUNS, seed=seed, ulp=EXP_ULP)
        expected = graph.expected_block_answer(plan, section, request, *request["input"].shape[:2])
        assert {name: (value.shape, value.dtype.name) for name, value in got.items()} == expected
        assert set(exact) == set(got)
        assert outside(got, exact, response, plan.dtype) == {}


def test_the_order_of_a_request_s_tensors_says_nothing(double: Session) -> None:
    """Neither in the request that is captured nor in one that is replayed; cotangents of one shape would be taken for each other."""
    request = block_request(double.plan, "layers.1", overrides=0, bars=1, seed=8)
    first = double.block("layers.1", request)
    for _ in range(3):
        request = dict(reversed(request.items()))
        for name, value in double.block("layers.1", request).items():
            np.testing.assert_array_equal(value, first[name], err_msg=name)


def test_an_override_cuts_the_graph(double: Session) -> None:
    request = block_request(double.plan, "layers.0", overrides=0, bars=0, seed=5)
    request |= {"override.mlp_norm": request["input"] + 1, "bar.gated": np.ones((2, 7, LAYOUT.intermediate_size))}
    got = double.block("layers.0", request)
    assert got["grad.mlp_norm"].any()
    assert got["grad.gate_proj.lora_a"].any()
    for name in ("grad.input", "grad.q_proj.lora_a", "grad.o_proj.lora_b", "grad.down_proj.lora_a"):
        assert not got[name].any()


def test_rope_tables_may_be_given(double: Session) -> None:
    request = block_request(double.plan, "layers.0", overrides=0, bars=0, seed=6)
    tables = {f"override.{name}": np.random.default_rng(6).standard_normal((7, LAYOUT.head_dim)) for name in graph.ROPE_TABLES}
    got, exact = double.block("layers.0", request | tables), oracle_of(double.plan, TENSORS).section("layers.0", request | tables)
    _, response = respond_section(double.plan, "layers.0", TENSORS.__getitem__, ADAPTER, request | tables, runs=RUNS, seed=6, ulp=EXP_ULP)
    assert outside(got, exact, response, "float64") == {}
    assert (got["q_rope"] != double.block("layers.0", request)["q_rope"]).any()


def test_the_embedding_is_exact(session: Session) -> None:
    plan = session.plan
    request = block_request(plan, EMBEDDING, overrides=1, bars=1, seed=3)
    got, exact = session.block(EMBEDDING, request), oracle_of(plan, TENSORS).section(EMBEDDING, request)
    np.testing.assert_array_equal(got["embedding"], exact["embedding"])
    np.testing.assert_array_equal(got["rope.cos"], exact["rope.cos"].astype(plan.dtype))
    assert set(got) == {"embedding", "rope.cos", "rope.sin", "grad.embedding"}
    assert not got["grad.embedding"].any()


def test_structural_zeros_are_exact(double: Session) -> None:
    fresh = ADAPTER | {name: np.zeros_like(matrix) for name, matrix in ADAPTER.items() if name.endswith(".lora_b")}
    double.state(fresh)
    got = double.gradients(all_taps(double.plan), batch_of())
    double.state(ADAPTER)
    future = np.triu(np.ones((7, 7), dtype=bool), 1)
    for layer in range(LAYOUT.num_hidden_layers):
        assert (got[f"layers.{layer}.weights"][..., future] == 0).all()
        assert (got[f"layers.{layer}.weights"][..., ~future] > 0).all()
        assert not got[f"layers.{layer}.q_proj.lora_bax"].any()
        assert not got[f"grad.layers.{layer}.q_proj.lora_a"].any()
        assert got[f"grad.layers.{layer}.q_proj.lora_b"].any()


def test_a_token_without_a_label_sends_no_gradient(double: Session) -> None:
    request = block_request(double.plan, HEAD, overrides=0, bars=0, seed=4) | {"bar.loss": np.array(1.0)}
    logits = double.block(HEAD, request)["logits"]
    got = double.block(HEAD, request | {"override.logits": logits})["grad.logits"]
    counted = np.zeros((2, 7), dtype=bool)
    counted[:, :-1] = request["labels"][:, 1:] != graph.IGNORE_INDEX
    np.testing.assert_array_equal(got.any(axis=-1), counted)


def test_nothing_overflows(double: Session) -> None:
    """A gate of +-800, whose exponential no float64 holds, and scores of 1e30 where no token may look."""
    request = block_request(double.plan, "layers.0", overrides=0, bars=0, seed=7)
    tap = {tap.name: tap for tap in taps.section_taps(double.plan, "layers.0")}
    gate = np.where(np.arange(LAYOUT.intermediate_size) % 2, 800.0, -800.0) + np.zeros((2, 7, 1))
    scores = np.triu(np.full((7, 7), 1e30), 1) + np.zeros(graph.shape_of("layers.0", tap["scores"], double.plan, 2, 7))
    bars = {f"bar.{name}": np.ones(graph.shape_of("layers.0", tap[name], double.plan, 2, 7)) for name in ("activation", "context")}
    got = double.block("layers.0", request | {"override.gate_proj": gate, "override.scores": scores} | bars)
    assert all(np.isfinite(value).all() for value in got.values())
    np.testing.assert_array_equal(got["activation"], np.maximum(gate, 0))
    np.testing.assert_array_equal(got["grad.gate_proj"], gate > 0)


@pytest.mark.parametrize(("dtype", "low"), [("float32", -100.0), ("float64", -740.0)])
def test_sigmoid_and_its_derivative(dtype: str, low: float) -> None:
    """Relative to the value, however small it is: exp's declared error (1 ulp is at most 2 u), and a sum and a quotient, each within u."""
    TinygradLora("CPU")
    x = np.linspace(low, -low, 20_001).astype(dtype)
    tensor = to_device(x, "CPU")
    value = sigmoid(tensor)
    (gradient,) = value.sum().gradient(tensor)
    decay = np.exp(-np.abs(x.astype(np.longdouble)))
    want, slope = np.where(x < 0, decay, 1) / (1 + decay), decay / (1 + decay) ** 2
    u, tiny = np.finfo(dtype).eps / 2, 2 * np.finfo(dtype).smallest_subnormal.astype(np.longdouble)
    relative = (2 * EXP_ULP + 2) * u / (1 - 8 * u)
    assert (np.abs(value.numpy() - want) <= relative * want + tiny).all()
    assert (np.abs(gradient.numpy() - slope) <= (2 * relative + u) * slope + tiny).all()
