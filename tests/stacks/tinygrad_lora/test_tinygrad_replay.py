"""A replayed answer is the first answer, bit for bit, of every operation; and a request never sees another one's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor

from contract.worker import discover
from contract.worker.process import StackProcess
from stacks.tinygrad_lora import compiler
from stacks.tinygrad_lora.entries import ENTRIES
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.replay import LARGEST, Replay, Replays, _views, write

_FLOAT = np.float32
_LAYOUT = {"block_size": 32, "out_features": 5, "in_features": 39}
_STEP = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}

# attributes of one request, attributes of another with the same kernels, and shapes ("u8": whole numbers in place of random ones)
CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "matmul": ({}, {}, {"a": (4, 9), "b": (9, 3), "y_bar": (4, 3)}),
    "linear": ({}, {}, {"x": (4, 9), "weight": (5, 9), "bias": (5,), "y_bar": (4, 5)}),
    "cross_entropy": ({}, {"reduction": "sum"}, {"logits": (4, 9), "labels": "ids", "loss_bar": ()}),
    "elementary": ({"function": "erf"}, {"function": "erf"}, {"x": (40,)}),
    "embedding": ({}, {}, {"weight": (9, 4), "ids": "ids", "y_bar": (4, 4)}),
    "rms_norm": ({"eps": 1e-5}, {"eps": 1.0}, {"x": (3, 8), "weight": (8,), "y_bar": (3, 8)}),
    "layer_norm": ({"eps": 1e-5}, {"eps": 1.0}, {"x": (3, 8), "weight": (8,), "bias": (8,), "y_bar": (3, 8)}),
    "rope_tables": ({"head_dim": 6, "theta": 1e4}, {"head_dim": 6, "theta": 1e2}, {"positions": "ids"}),
    "rope": ({"theta": 1e4}, {"theta": 1e2}, {"x": (1, 3, 4, 6), "positions": "row", "y_bar": (1, 3, 4, 6)}),
    "softmax": ({}, {}, {"x": (3, 8), "y_bar": (3, 8)}),
    "attention": (
        {"window": None}, {"window": 2},
        {"q": (1, 4, 4, 6), "k": (1, 2, 4, 6), "v": (1, 2, 4, 6), "context_bar": (1, 4, 4, 6)},
    ),
    "silu": ({}, {}, {"x": (40,), "y_bar": (40,)}),
    "gelu": ({"approximate": "none"}, {"approximate": "tanh"}, {"x": (40,), "y_bar": (40,)}),
    "swiglu": ({}, {}, {"gate": (3, 8), "up": (3, 8), "y_bar": (3, 8)}),
    "lora_linear": (
        {"alpha": 3.0}, {"alpha": 5.0, "rslora": True},
        {"x": (4, 9), "weight": (5, 9), "lora_a": (2, 9), "lora_b": (5, 2), "y_bar": (4, 5)},
    ),
    "clip_gradients": ({"max_norm": 0.1}, {"max_norm": 1e3}, {"a": (3, 4), "b": (5,)}),
    "adamw_step": (_STEP, {**_STEP, "lr": 0.3}, {"weight": (7,), "gradient": (7,), "m": (7,), "v": (7,), "step": "step"}),
    "nf4_quantize": ({"block_size": 32}, {"block_size": 32}, {"weight": (5, 39)}),
    "nf4_offset": ({}, {}, {"absmax": (300,)}),
    "nf4_nest": ({}, {}, {"absmax": (300,), "offset": ()}),
    "nf4_unnest": ({}, {}, {"absmax_codes": "u8", "nested_absmax": (2,), "offset": ()}),
    "nf4_dequantize": (_LAYOUT, _LAYOUT, {"packed": "packed", "absmax": (7,)}),
    "nf4_linear": (_LAYOUT, _LAYOUT, {"x": (3, 39), "packed": "packed", "absmax": (7,), "y_bar": (3, 5)}),
}  # fmt: skip

PLAIN = ("matmul", "linear", "elementary", "layer_norm", "softmax", "silu", "gelu", "swiglu", "nf4_offset", "nf4_unnest", "nf4_dequantize")
"""Operations whose request goes to the device as it came, or as another one's does."""


def tensors(op: str, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    whole = {
        "ids": generator.integers(0, 9, 4), "row": generator.integers(0, 99, (1, 4)), "step": np.array(seed),
        "u8": generator.integers(0, 256, 300).astype(np.uint8), "packed": generator.integers(0, 256, 98).astype(np.uint8),
    }  # fmt: skip
    return {
        name: whole[shape] if isinstance(shape, str) else np.asarray(np.abs(generator.standard_normal(shape)), dtype=_FLOAT)
        for name, shape in CASES[op][2].items()
    }


def test_every_operation_has_a_case() -> None:
    assert set(CASES) == set(ENTRIES) == set(discover.installed()["tinygrad_lora"].capabilities.operations)


@pytest.mark.parametrize("op", [pytest.param(op, marks=[pytest.mark.nightly] if op in PLAIN else []) for op in CASES])
def test_a_replay_is_the_first_answer(stack: StackProcess, op: str) -> None:
    """The first request runs, the second one is captured, the others are replays: what the capture kept of its request would show."""
    one, other, _ = CASES[op]
    first, captured, *replayed = (stack.compute(op, attrs, tensors(op, seed)).tensors for attrs, seed in 2 * [(one, 0), (other, 1)])
    for again, before in zip(replayed, (first, captured), strict=True):
        assert {name: array.tobytes() for name, array in again.items()} == {name: array.tobytes() for name, array in before.items()}
    assert all(first[name].tobytes() != captured[name].tobytes() for name in first)


@pytest.mark.parametrize(("width", "runs"), [(8, 2), (LARGEST // 4 + 1, 4)])
def test_what_is_small_is_scheduled_twice_and_what_is_large_each_time(width: int, runs: int) -> None:
    calls: list[int] = []

    def doubled(given: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return {"y": given["x"] * 2}

    compiler.prepare()
    replays = Replays("CPU")
    for seed in range(4):
        x = np.full(width, seed, np.float32)
        np.testing.assert_array_equal(replays.run(doubled, {"x": x})["y"], 2 * x)
    assert len(calls) == runs


def test_a_release_keeps_the_state(cpu: TinygradLora) -> None:
    """What a captured function assigns to outlives it; what its kernels work on is taken anew."""
    state = Tensor(np.zeros(6, np.float32)).realize()

    def add(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        total = (tensors["x"] * 2).contiguous().realize()
        state.assign(state + total).realize()
        return {"total": (total + state).contiguous()}

    replay, expected = Replay(add, "CPU", state=(state,)), np.zeros(6, np.float32)
    for call in range(5):
        x = np.arange(6, dtype=np.float32) + call
        expected += 2 * x
        np.testing.assert_array_equal(replay({"x": x})["total"], 2 * x + expected)
        replay.release()
        np.testing.assert_array_equal(state.numpy(), expected)
    write(state, np.ones(6, np.float32))
    np.testing.assert_array_equal(replay({"x": np.ones(6, np.float32)})["total"], np.full(6, 5, np.float32))


def test_after_a_release_kernels_work_where_their_memory_lies(cpu: TinygradLora) -> None:
    """tinygrad frees the memory that a captured function's parts lie in, and would leave them with the address that it had."""

    def chained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = (tensors["x"] + 1).contiguous()
        second = (first.sum() + first * 2).contiguous()
        return {"y": (second.max() + second).contiguous()}

    replay, given = Replay(chained, "CPU"), {"x": np.arange(4096, dtype=np.float32)}
    for _ in range(3):
        expected = replay(given)["y"]
    assert all(got == wanted for got, wanted in _places(replay))
    replay.release()
    taken = [Tensor(np.zeros(size, np.int8)).realize() for size in range(16384, 66560, 256)]  # whatever the size, one takes the memory
    np.testing.assert_array_equal(replay(given)["y"], expected)
    assert len(_places(replay)) == 2
    assert all(got == wanted for got, wanted in _places(replay))
    assert not any(tensor.numpy().any() for tensor in taken)


def _places(replay: Replay) -> list[tuple[int, int]]:
    """Where each part lies, and where it should: the address of the whole, and its offset."""
    captured = replay._function.captured
    assert captured is not None
    return [(view._buf.va_addr, view.base._buf.va_addr + view.offset) for view in _views(captured.linear)]
