"""The float64 oracle against torch's autograd on a graph written plainly, against finite differences, and by its structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, MistralLayout, Qwen2Layout, Qwen3Layout, RopeScaling
from contract.worker.graph import expected_block_answer, tap_shapes
from contract.worker.plan import Lora
from contract.worker.taps import EMBEDDING, HEAD, entering, prefix, section_taps
from parity.reference.graph import Oracle
from tests.parity.reference.plain_cases import Case, case, of_layout
from tests.parity.reference.plain_graph import TABLES, Plain

CASES: dict[str, dict[str, Any]] = {
    "grouped queries, biases, untied": {},
    "tied, no biases": {"tied": True, "bias": False},
    "rslora, some linears": {"lora": Lora(rank=2, alpha=3.0, rslora=True, targets=("v_proj", "o_proj", "gate_proj"))},
    "one key head": {"num_key_value_heads": 1, "layers": 1},
    "a key head each": {"num_key_value_heads": 6, "batch": 3, "tokens": 5},
    "one sequence, the smallest heads": {"tokens": 6, "batch": 1, "hidden_size": 9, "head_dim": 2},
}

ROPE: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "rms_norm_eps": 3e-3, "rope_theta": 12.5,
}  # fmt: skip
LLAMA3 = RopeScaling(rope_type="llama3", factor=3.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=60)
GPT2: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 5, "max_position_embeddings": 64, "layer_norm_epsilon": 3e-3, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
}  # fmt: skip
PATTERNS = Lora(rank=3, alpha=7.0, rank_pattern={"q_proj": 2, "layers.1.q_proj": 4}, alpha_pattern={"layers.0.down_proj": 1.5})
LAYOUTS: dict[str, Layout] = {
    "llama, linear": LlamaLayout(
        **ROPE, attention_bias=False, mlp_bias=True, tie_word_embeddings=True, rope_scaling=RopeScaling(rope_type="linear", factor=2.5)
    ),
    "llama, llama3": LlamaLayout(**ROPE, attention_bias=True, mlp_bias=False, tie_word_embeddings=False, rope_scaling=LLAMA3),
    "mistral": MistralLayout(**ROPE, tie_word_embeddings=False, sliding_window=3),
    "qwen2": Qwen2Layout(**ROPE, tie_word_embeddings=True, sliding_window=2, max_window_layers=1),
    "qwen3": Qwen3Layout(
        **ROPE, tie_word_embeddings=False, attention_bias=True, sliding_window=3,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
    ),
    "gpt2, gelu_new": GPT2Layout(**GPT2, tie_word_embeddings=True, activation_function="gelu_new"),
    "gpt2, options": GPT2Layout(
        **GPT2 | {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, tie_word_embeddings=False,
        activation_function="gelu",
    ),
}  # fmt: skip


def oracle(it: Case) -> Oracle:
    return Oracle(it.plan, it.weights.__getitem__, it.adapter)


def close(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Both are float64, the sums short: a thousand roundings of the largest element are plenty, an error in a formula is not."""
    assert got.dtype == np.float64, what
    assert got.shape == wanted.shape, what
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e3 * 2.0**-53 * max(float(np.abs(wanted).max(initial=0)), 1e-9), err_msg=what)


@pytest.mark.parametrize("name", CASES)
def test_the_whole_graph_is_autograd_s(name: str) -> None:
    is_autograd_s(case(3, **CASES[name]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_architecture_is_autograd_s(name: str, packed: bool) -> None:
    is_autograd_s(of_layout(LAYOUTS[name], 3, batch=3, tokens=9, lora=PATTERNS, packed=packed))


def is_autograd_s(it: Case) -> None:
    """Every tap, cotangent and gradient of the whole graph."""
    trace, wanted = oracle(it).graph(it.batch), Plain(it).graph(it.batch)
    assert list(trace.taps) == list(tap_shapes(it.plan, *it.ids.shape))
    assert set(trace.taps) == set(wanted["taps"])
    assert set(trace.bars) == set(wanted["taps"]) - set(TABLES)
    assert set(trace.grads) == set(it.adapter)
    for kind in ("taps", "bars", "grads"):
        for tap, value in wanted[kind].items():
            close(getattr(trace, kind)[tap], value, f"{kind} {tap}")
    assert all(np.abs(gradient).max() > 0 for gradient in trace.grads.values())
    entered = entering(it.plan.layout)
    assert set(trace.inputs) == set(trace.input_bars) == {*(f"layers.{n}" for n in range(it.plan.layout.num_hidden_layers)), HEAD}
    np.testing.assert_array_equal(trace.inputs["layers.0"], trace.taps[entered])
    np.testing.assert_array_equal(trace.input_bars["layers.0"], trace.bars[entered])


def test_only_what_is_wanted_is_kept() -> None:
    it = case(4)
    trace = oracle(it).graph(it.batch, keep=lambda name: name.endswith("output"))
    assert list(trace.taps) == ["layers.0.output", "layers.1.output"]
    assert set(trace.bars) == set(trace.taps)
    assert len(trace.grads) == len(it.adapter)


def request(it: Case, section: str, overridden: list[str], cotangents: list[str], *, tables: bool = False) -> dict[str, np.ndarray]:
    """A block request on drawn tensors."""
    rng = np.random.default_rng(11)
    packed = it.batch.positions is not None
    shapes = {name: shape for name, (shape, _) in tap_shapes(it.plan, *it.ids.shape, positions=packed).items()}
    own = prefix(section)
    drawn = {f"override.{name}": rng.standard_normal(shapes[own + name]) for name in overridden}
    drawn |= {f"bar.{name}": rng.standard_normal(shapes[own + name]) for name in cotangents}
    if tables:
        drawn |= {f"override.{name}": rng.standard_normal(shapes[name]) for name in TABLES}
    left_out = {EMBEDDING: ("labels", "segments"), HEAD: ("ids", "positions")}.get(section, ("ids", "labels"))
    drawn |= {name: array for name, array in it.batch.tensors().items() if name not in left_out}
    return drawn if section == EMBEDDING else drawn | {"input": rng.standard_normal((*it.ids.shape, it.plan.layout.hidden_size))}


def subsets(names: list[str]) -> list[tuple[list[str], list[str]]]:
    """Nothing given, cotangents alone, all overridden, and drawn mixtures."""
    rng = np.random.default_rng(12)
    mixtures = [([name for name in names if rng.random() < 0.3], [name for name in names if rng.random() < 0.4]) for _ in range(12)]
    single = [([], [name]) for name in names]
    return [([], []), ([], names), (names, names), (names, []), (names[:1], names[-1:]), *mixtures, *single]


@pytest.mark.parametrize("section", [EMBEDDING, "layers.1", HEAD])
@pytest.mark.parametrize("name", ["grouped queries, biases, untied", "rslora, some linears"])
def test_a_section_is_autograd_s(section: str, name: str) -> None:
    is_a_section_of_autograd_s(case(5, **CASES[name]), section)


@pytest.mark.parametrize("section", [EMBEDDING, "layers.1", HEAD])
@pytest.mark.parametrize("name", ["gpt2, options", "qwen3"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_section_of_every_kind_is_autograd_s(section: str, name: str, packed: bool) -> None:
    is_a_section_of_autograd_s(of_layout(LAYOUTS[name], 5, batch=3, lora=PATTERNS, packed=packed), section)


def is_a_section_of_autograd_s(it: Case, section: str) -> None:
    """Whatever is overridden, and whatever has a cotangent."""
    names = [tap.name for tap in section_taps(it.plan, section) if not tap.name.startswith("rope.")]
    for overridden, cotangents in subsets(names):
        tensors = request(it, section, overridden, cotangents)
        got, wanted = oracle(it).section(section, tensors), Plain(it).section(section, tensors)
        expected = expected_block_answer(it.plan, section, tensors, *it.ids.shape)
        assert {tensor: (value.shape, value.dtype.name) for tensor, value in got.items()} == expected
        assert set(got) == set(wanted)
        for tensor, value in wanted.items():
            close(got[tensor], value, f"{tensor}, overridden {overridden}, cotangents of {cotangents}")


def test_a_token_of_padding_sees_nothing_and_is_seen_by_none() -> None:
    it = of_layout(LAYOUTS["mistral"], 6, batch=3, packed=True)
    trace = oracle(it).graph(it.batch)
    assert it.batch.segments is not None
    padding = it.batch.segments == -1
    assert padding.any(axis=1).all()
    weights = trace.taps["layers.0.weights"]
    assert not weights.swapaxes(1, 2)[padding].any()
    assert not np.moveaxis(weights, -1, 1)[padding].any()
    assert not trace.taps["layers.0.context"][padding].any()
    assert not trace.bars["layers.1.output"][padding].any()


def test_given_tables_take_their_place() -> None:
    it = case(6)
    tensors = request(it, "layers.0", [], ["output"], tables=True)
    got, wanted = oracle(it).section("layers.0", tensors), Plain(it).section("layers.0", tensors)
    assert set(got) == set(wanted)
    for tensor, value in wanted.items():
        close(got[tensor], value, tensor)
    assert np.abs(got["q_rope"] - oracle(it).section("layers.0", request(it, "layers.0", [], []))["q_rope"]).max() > 0.1


def test_the_head_answers_without_labels() -> None:
    it = case(6)
    tensors = request(it, HEAD, [], ["logits"])
    del tensors["labels"]
    got, wanted = oracle(it).section(HEAD, tensors), Plain(it).section(HEAD, tensors)
    assert set(got) == {"final_norm", "logits", "grad.input"}
    close(got["grad.input"], wanted["grad.input"], "grad.input")


@pytest.mark.parametrize("name", ["layers.0.q_proj.lora_a", "layers.1.down_proj.lora_b", "layers.0.k_proj.lora_b"])
def test_a_gradient_is_the_loss_s_difference(name: str) -> None:
    """Central differences, which know no chain rule: their error is of the order of the step squared."""
    it = case(7)
    direction = np.random.default_rng(8).standard_normal(it.adapter[name].shape)
    step = 1e-6

    def loss(by: float) -> float:
        moved = it.adapter | {name: it.adapter[name].astype(np.float64) + by * direction}
        return float(Oracle(it.plan, it.weights.__getitem__, moved).graph(it.batch, keep=lambda tap: tap == "loss").taps["loss"])

    slope = float(np.sum(oracle(it).graph(it.batch).grads[name] * direction))
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("section", ["layers.0", HEAD])
def test_a_section_s_cotangents_are_the_graph_s(section: str) -> None:
    it = case(10)
    trace = oracle(it).graph(it.batch)
    given = {"input": trace.inputs[section]}
    if section == HEAD:
        given |= {"labels": it.labels, "bar.loss": np.ones(())}
    else:
        given["bar.output"] = trace.bars[f"{section}.output"]
    found = oracle(it).cotangents(section, given)
    assert set(found) == {tap.name for tap in section_taps(it.plan, section)}
    for name, value in found.items():
        np.testing.assert_array_equal(value, trace.bars[prefix(section) + name], name)


def test_what_the_structure_makes_zero_is_zero() -> None:
    it = case(9)
    fresh = it.adapter | {name: np.zeros_like(matrix) for name, matrix in it.adapter.items() if name.endswith("lora_b")}
    trace = Oracle(it.plan, it.weights.__getitem__, fresh).graph(it.batch)
    for name, gradient in trace.grads.items():
        assert (np.abs(gradient).max() == 0) == name.endswith("lora_a"), name
    weights = trace.taps["layers.0.weights"]
    assert not weights[..., np.triu(np.ones(weights.shape[-2:], bool), 1)].any()
    assert not trace.bars["logits"][:, -1].any()
    assert not trace.bars["logits"][0, :2].any()
