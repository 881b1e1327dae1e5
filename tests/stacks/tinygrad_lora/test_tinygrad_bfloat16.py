"""What bfloat16 means in the tinygrad stack's graph, to the last bit where numbers are chosen so that it must be."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from contract.model.layout import LlamaLayout
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora
from stacks.tinygrad_lora.host import to_device, to_host
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.session import Session
from tests.stacks.tinygrad_lora.tiny_tinygrad_graph import block_request, tensors_of

B, T = 2, 7
LAYOUT = LlamaLayout(
    vocab_size=61, hidden_size=48, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=64, rms_norm_eps=1e-2, rope_theta=100.0, attention_bias=True, mlp_bias=False, tie_word_embeddings=False,
)  # fmt: skip
PLAN = GraphPlan(layout=LAYOUT, dtype="bfloat16", lora=Lora(rank=2, alpha=4.0, targets=("q_proj",)))
BF16 = np.dtype(ml_dtypes.bfloat16)

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def answered() -> tuple[Arrays, Arrays, Arrays]:
    """Weights, a block's request with every tap overridden and every cotangent given, and its answer."""
    TinygradLora("CPU")
    generator, tensors = np.random.default_rng(4), tensors_of(PLAN)
    # whole numbers of 8 bits, of which sums over 48 need more than bfloat16 has, and no more than float32 has
    tensors["layers.0.q_proj"] = generator.integers(-127, 128, (32, 48)).astype(np.float32)
    tensors["layers.0.q_proj.bias"] = generator.integers(-127, 128, 32).astype(np.float32)
    tensors["layers.0.q_proj.lora_a"] = (generator.standard_normal((2, 48)) * 3).astype(np.float32)
    every = block_request(PLAN, "layers.0", overrides=1.0, bars=1.0, seed=1)
    wanted = ("input", "bar.q_proj", *(f"override.{name}" for name in ("activation", "up_proj", "attention_residual", "down_proj")))
    request = {name: every[name].astype(BF16) for name in wanted}
    request["override.attention_norm"] = generator.integers(-127, 128, (B, T, 48)).astype(BF16)
    session = Session(PLAN, tensors, device="CPU", channel=None)
    return tensors, request, session.block("layers.0", request)


def wide(request: Arrays, name: str) -> np.ndarray:
    """An override in float64."""
    return request[f"override.{name}"].astype(np.float64)


def test_its_dtypes(answered: tuple[Arrays, Arrays, Arrays]) -> None:
    _, request, got = answered
    expected = graph.expected_block_answer(PLAN, "layers.0", request, B, T)
    assert {name: (value.shape, value.dtype.name) for name, value in got.items()} == expected
    assert got["grad.q_proj.lora_a"].dtype == np.float32
    assert got["q_proj"].dtype == BF16


def test_a_product_accumulates_in_float32_and_is_rounded_once(answered: tuple[Arrays, Arrays, Arrays]) -> None:
    """The exact sum of whole numbers, bias included, then one rounding: a sum in bfloat16, or of rounded products, is another."""
    tensors, request, got = answered
    exact = wide(request, "attention_norm") @ tensors["layers.0.q_proj"].astype(np.float64).T + tensors["layers.0.q_proj.bias"]
    np.testing.assert_array_equal(got["q_proj.base"], exact.astype(np.float32).astype(BF16))


def test_a_master_is_cast_once_in_the_product(answered: tuple[Arrays, Arrays, Arrays]) -> None:
    """16-bit products of a bfloat16 A, summed in float32: within the accumulation's bound of the exact sum, and one rounding."""
    tensors, request, got = answered
    a, x = tensors["layers.0.q_proj.lora_a"].astype(BF16).astype(np.float64), wide(request, "attention_norm")
    exact, magnitude = x @ a.T, np.abs(x) @ np.abs(a).T
    bound = 48 * 2.0**-24 / (1 - 48 * 2.0**-24) * magnitude
    assert (np.abs(got["q_proj.lora_ax"].astype(np.float64) - exact) <= bound + 2.0**-8 * (np.abs(exact) + bound)).all()
    unrounded = x @ tensors["layers.0.q_proj.lora_a"].astype(np.float64).T
    assert (np.abs(unrounded - exact) > bound + 2.0**-8 * (np.abs(exact) + bound)).any(), "the cast would not show"


@pytest.mark.parametrize(("name", "of"), [("gated", ("activation", "up_proj")), ("output", ("attention_residual", "down_proj"))])
def test_what_is_done_element_by_element_is_rounded_once(answered: tuple[Arrays, Arrays, Arrays], name: str, of: tuple[str, str]) -> None:
    _, request, got = answered
    first, second = (request[f"override.{one}"].astype(np.float32) for one in of)
    np.testing.assert_array_equal(got[name], (first * second if name == "gated" else first + second).astype(BF16))


def test_a_norm_is_float32_inside(answered: tuple[Arrays, Arrays, Arrays]) -> None:
    """Within one rounding of bfloat16 and a few of float32: in bfloat16 inside, the mean alone would be off by more."""
    tensors, request, got = answered
    x, weight = wide(request, "attention_residual"), tensors["layers.0.mlp_norm"].astype(BF16).astype(np.float64)
    exact = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-2) * weight
    inside = (48 + 6) * 2.0**-24 / (1 - 54 * 2.0**-24)
    allowed = (inside + 2.0**-8 * (1 + inside)) * np.abs(exact)
    assert (np.abs(got["mlp_norm"].astype(np.float64) - exact) <= allowed).all()
    narrow = x.astype(BF16) / np.sqrt(np.square(x.astype(BF16)).mean(axis=-1, keepdims=True) + BF16.type(1e-2)) * weight.astype(BF16)
    assert (np.abs(narrow.astype(np.float64) - exact) > allowed).any(), "bfloat16 inside would not show"


def test_there_and_back() -> None:
    """Every bit pattern of a finite bfloat16, with the device between."""
    TinygradLora("CPU")
    bits = np.arange(2**16, dtype=np.uint16)
    every = bits[(bits & 0x7F80) != 0x7F80].view(BF16)
    np.testing.assert_array_equal(to_host(to_device(every, "CPU").realize()).view(np.uint16), every.view(np.uint16))


@pytest.mark.nightly
def test_taps_of_bfloat16_are_replayed() -> None:
    """The third request of a shape is a replay, of the same bits as the first."""
    TinygradLora("CPU")
    session, ids = Session(PLAN, tensors_of(PLAN), device="CPU", channel=None), np.arange(7)[None]
    wanted: list[Any] = list(taps.full_names(PLAN))
    first, *others = (session.gradients(wanted, {"ids": ids, "labels": ids}) for _ in range(3))
    for other in others:
        for name, value in first.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
    assert first["loss"].dtype == np.float32
