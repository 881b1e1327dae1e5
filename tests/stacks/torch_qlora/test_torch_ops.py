"""Dispatch: exact products and gradients, answers of the contract's shape, refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stacks.torch_qlora
from contract.worker.capabilities import Capabilities
from contract.worker.operations import OPERATIONS
from contract.worker.process import check_answer
from contract.worker.stack import NotSupported
from stacks.torch_qlora import nf4, ops
from stacks.torch_qlora.entries import ENTRIES
from stacks.torch_qlora.ops import TorchQlora

CAPABILITIES = Capabilities.model_validate(json.loads(Path(stacks.torch_qlora.__file__).with_name("capabilities.json").read_text()))


def _integers(seed: int, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Odd integers of 9 bits: a sum of 31 products stays under 2^24, so float32 is exact, and a bfloat16 cast anywhere is not."""
    generator = np.random.default_rng(seed)
    return ((2 * generator.integers(64, 256, shape) + 1) * generator.choice([-1, 1], shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matmul_and_gradients_are_exact_on_integers(dtype: str) -> None:
    a, b, bar = _integers(0, 5, 31, dtype=dtype), _integers(1, 31, 7, dtype=dtype), _integers(2, 5, 7, dtype=dtype)
    attrs, tensors = {"dtype": dtype}, {"a": a, "b": b, "y_bar": bar}
    got = TorchQlora("CPU").compute("matmul", attrs, tensors).tensors
    check_answer("torch_qlora", "matmul", attrs, tensors, got)
    np.testing.assert_array_equal(got["y"], a @ b)
    np.testing.assert_array_equal(got["a_grad"], bar @ b.T)
    np.testing.assert_array_equal(got["b_grad"], a.T @ bar)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_and_gradients_are_exact_on_integers(dtype: str, biased: bool) -> None:
    x, weight, bar = _integers(3, 6, 31, dtype=dtype), _integers(4, 9, 31, dtype=dtype), _integers(5, 6, 9, dtype=dtype)
    bias = {"bias": _integers(6, 9, dtype=dtype)} if biased else {}
    attrs, tensors = {"dtype": dtype}, {"x": x, "weight": weight, "y_bar": bar, **bias}
    got = TorchQlora("CPU").compute("linear", attrs, tensors).tensors
    check_answer("torch_qlora", "linear", attrs, tensors, got)
    np.testing.assert_array_equal(got["y"], x @ weight.T + bias.get("bias", 0))
    np.testing.assert_array_equal(got["x_grad"], bar @ weight)
    np.testing.assert_array_equal(got["weight_grad"], bar.T @ x)
    if biased:
        np.testing.assert_array_equal(got["bias_grad"], bar.sum(axis=0))


def test_without_cotangents_there_are_no_gradients() -> None:
    got = TorchQlora("CPU").compute("matmul", {}, {"a": _integers(0, 2, 3), "b": _integers(1, 3, 4)}).tensors
    assert sorted(got) == ["y"]


def test_nf4_operations_answer_what_the_contract_says() -> None:
    stack, weight = TorchQlora("CPU"), np.random.default_rng(0).standard_normal((45, 401)).astype(np.float32)
    shape = {"block_size": 64, "out_features": 45, "in_features": 401}
    quantized = _checked(stack, "nf4_quantize", {"block_size": 64}, {"weight": weight})
    absmax = {"absmax": quantized["absmax"]}
    offset = _checked(stack, "nf4_offset", {}, absmax)
    nested = _checked(stack, "nf4_nest", {}, absmax | offset)
    unnested = _checked(stack, "nf4_unnest", {}, nested | offset)
    dequantized = _checked(stack, "nf4_dequantize", shape, {"packed": quantized["packed"]} | unnested)
    again = _checked(stack, "nf4_quantize", {"block_size": 64}, dequantized)
    assert np.count_nonzero(again["codes"] == quantized["codes"]) > 0.9 * weight.size
    x, bar = _integers(8, 4, 401), _integers(9, 4, 45)
    product = _checked(stack, "nf4_linear", shape, {"x": x, "packed": quantized["packed"], "y_bar": bar} | unnested)
    plain = _checked(stack, "linear", {}, {"x": x, "weight": dequantized["weight"]})
    np.testing.assert_array_equal(product["y"], plain["y"])


def test_the_table_is_the_declaration() -> None:
    assert {name: entry.dtypes for name, entry in ENTRIES.items()} == dict(CAPABILITIES.operations)
    assert set(ENTRIES) <= set(OPERATIONS)
    assert CAPABILITIES.nf4_block_sizes == nf4.BLOCK_SIZES
    assert CAPABILITIES.devices == tuple(ops.DEVICES)


@pytest.mark.parametrize(
    ("op", "dtype", "message"),
    [
        ("nf4_linear", "float64", "does not compute nf4_linear in float64; allowed: float32 .bitsandbytes returns uninitialised"),
        ("matmul", "bfloat16", "does not compute matmul in bfloat16; allowed: float32, float64"),
        ("conv", "float32", "does not compute 'conv'; allowed: matmul"),
    ],
)
def test_unknown_operation_or_dtype_is_refused_by_name(op: str, dtype: str, message: str) -> None:
    with pytest.raises(NotSupported, match=message):
        TorchQlora("CPU").compute(op, {"dtype": dtype}, {})


def test_missing_attribute_is_named() -> None:
    with pytest.raises(ValueError, match="block_size"):
        TorchQlora("CPU").compute("nf4_quantize", {}, {"weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match="function is 'None'; allowed: exp, log"):
        TorchQlora("CPU").compute("elementary", {}, {"x": np.zeros(2, np.float32)})


TOO_LARGE = 10**400
"""JSON carries it; no float holds it."""


@pytest.mark.parametrize(
    ("op", "attrs", "tensors"),
    [
        ("rms_norm", {"eps": TOO_LARGE}, {"x": (2, 4), "weight": (4,)}),
        ("layer_norm", {"eps": 1e39}, {"x": (2, 4), "weight": (4,), "bias": (4,)}),
        ("rms_norm", {"eps": 0}, {"x": (2, 4), "weight": (4,)}),
        ("lora_linear", {"alpha": 1e308}, {"x": (2, 4), "weight": (3, 4), "lora_a": (2, 4), "lora_b": (3, 2)}),
        ("clip_gradients", {"max_norm": TOO_LARGE}, {"a": (2, 3), "b": (4,)}),
        ("rope_tables", {"head_dim": 4, "theta": TOO_LARGE}, {"positions": "ids"}),
        ("cross_entropy", {"ignore_index": "1"}, {"logits": (2, 4), "labels": "ids"}),
        ("cross_entropy", {"ignore_index": 1.5}, {"logits": (2, 4), "labels": "ids"}),
        ("cross_entropy", {"ignore_index": 2**63}, {"logits": (2, 4), "labels": "ids"}),
        ("gelu", {}, {"x": (4,)}),
    ],
)
def test_an_attribute_that_is_none_is_refused_by_name(op: str, attrs: dict[str, Any], tensors: dict[str, Any]) -> None:
    given = {name: np.array([0, 1]) if shape == "ids" else np.ones(shape, np.float32) for name, shape in tensors.items()}
    with pytest.raises(ValueError, match=f"{op}: .*; allowed: "):
        TorchQlora("CPU").compute(op, attrs, given)


def test_a_window_that_int64_does_not_hold_is_one_of_all_tokens() -> None:
    q = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    wide, all_seen = (TorchQlora("CPU").compute("attention", attrs, {"q": q, "k": q, "v": q}).tensors for attrs in ({"window": 10**30}, {}))
    np.testing.assert_array_equal(wide["context"], all_seen["context"])


def test_steps_that_float64_does_not_count_are_refused() -> None:
    given = {name: np.ones(2, np.float32) for name in ("weight", "gradient", "m", "v")} | {"step": np.array(2**63 - 1)}
    with pytest.raises(ValueError, match="adamw_step: step is 9223372036854775807; allowed: "):
        TorchQlora("CPU").compute("adamw_step", {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0}, given)


def test_a_frozen_weight_gets_no_gradient() -> None:
    tensors = {"x": _integers(3, 6, 31), "weight": _integers(4, 9, 31), "y_bar": _integers(5, 6, 9)}
    got = TorchQlora("CPU").compute("linear", {"frozen": ["weight"]}, tensors).tensors
    assert sorted(got) == ["x_grad", "y"]


def test_unknown_device_is_refused() -> None:
    with pytest.raises(NotSupported, match="no device 'TPU'; allowed: CPU, CUDA"):
        TorchQlora("TPU")


def test_absent_cuda_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotSupported, match="finds no CUDA device; install a CUDA build of torch"):
        TorchQlora("CUDA")


def _checked(stack: TorchQlora, op: str, attrs: dict[str, int], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    got = stack.compute(op, attrs, tensors).tensors
    check_answer("torch_qlora", op, attrs, tensors, got)
    return got
