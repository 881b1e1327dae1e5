"""The tinygrad stack's worker: products and their gradients, its probe, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.worker.process import RequestFailed, StackProcess

COMMAND = (sys.executable, "-m", "stacks.tinygrad_lora.worker")
SHAPES = ((1, 1, 1), (7, 33, 5), (16, 96, 12))


def within_the_bound(got: np.ndarray, left: np.ndarray, right: np.ndarray) -> bool:
    """|y - y64| <= gamma_k (|A||B|) (Higham 2002, section 3.1), with one more rounding for NumPy's own sum in float64."""
    u, k = np.finfo(got.dtype).eps / 2, 2 * left.shape[1] + 1
    left, right = left.astype(np.float64), right.astype(np.float64)
    return bool((np.abs(got - left @ right) <= k * u / (1 - k * u) * (np.abs(left) @ np.abs(right))).all())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_matmul(stack: StackProcess, dtype: str, shape: tuple[int, int, int], seed: int) -> None:
    rows, inner, columns = shape
    generator = np.random.default_rng(seed)
    a, b, bar = (generator.standard_normal(size).astype(dtype) for size in ((rows, inner), (inner, columns), (rows, columns)))
    answer = stack.compute("matmul", {"dtype": dtype}, {"a": a, "b": b, "y_bar": bar}).tensors
    assert within_the_bound(answer["y"], a, b)
    assert within_the_bound(answer["a_grad"], bar, b.T)
    assert within_the_bound(answer["b_grad"], a.T, bar)
    assert answer["a_grad"].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_with_a_bias(stack: StackProcess, dtype: str) -> None:
    generator = np.random.default_rng(4)
    x, weight, bias, bar = (generator.standard_normal(size).astype(dtype) for size in ((7, 33), (5, 33), (5,), (7, 5)))
    answer = stack.compute("linear", {"dtype": dtype}, {"x": x, "weight": weight, "bias": bias, "y_bar": bar}).tensors
    assert within_the_bound(answer["y"], np.hstack([x, np.ones((7, 1), dtype)]), np.vstack([weight.T, bias]))
    assert within_the_bound(answer["x_grad"], bar, weight)
    assert within_the_bound(answer["weight_grad"], bar.T, x)
    assert within_the_bound(answer["bias_grad"][:, None], bar.T, np.ones((7, 1), dtype))


def test_a_frozen_input_has_no_gradient(stack: StackProcess) -> None:
    tensors = {"x": np.ones((7, 33), np.float32), "weight": np.ones((5, 33), np.float32), "y_bar": np.ones((7, 5), np.float32)}
    assert set(stack.compute("linear", {"frozen": ["weight"]}, tensors).tensors) == {"y", "x_grad"}


@pytest.mark.parametrize("seed", range(4))
def test_odd_integers_times_signs_come_out_exactly(stack: StackProcess, seed: int) -> None:
    """A bfloat16 or TF32 pass anywhere would break them; an order of summation can't."""
    generator = np.random.default_rng(seed)
    wide = (2 * generator.integers(0, 2**12, (16, 96)) + 1).astype(np.float32)
    signs = generator.choice(np.float32([-1, 1]), (96, 12))
    for a, b in ((wide, signs), (signs.T.copy(), wide.T.copy())):
        np.testing.assert_array_equal(stack.compute("matmul", {}, {"a": a, "b": b}).tensors["y"], a.astype(np.float64) @ b)


def test_the_probe(stack: StackProcess) -> None:
    values = stack.request("probe").values
    assert values["device"] == "CPU"
    assert values["dtypes"] == ["float32", "float64", "bfloat16"]
    assert values["name"]
    assert set(values["versions"]) == {"tinygrad", "python"}
    assert values["compiler"]["kind"] in ("CC", "clang", "zig")
    assert "clang" in values["compiler"]["version"]
    assert values["defects"] == {}


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("matmul", {"dtype": "bfloat16"}, "does not compute matmul in bfloat16 on CPU; allowed: float32, float64"),
        ("nf4_offset", {"dtype": "float64"}, "does not compute nf4_offset in float64 on CPU; allowed: float32"),
    ],
)
def test_another_dtype_is_not_supported(stack: StackProcess, op: str, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestFailed, match=message) as caught:
        stack.request("compute", {"op": op, "attrs": attrs}, {"a": np.ones((1, 1), np.float32)})
    assert caught.value.error_class == "NotSupported"


def test_a_missing_attribute_is_named(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="attribute 'block_size' is missing") as caught:
        stack.request("compute", {"op": "nf4_quantize", "attrs": {}}, {"weight": np.ones((1, 1), np.float32)})
    assert caught.value.error_class == "ValueError"


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
def test_an_attribute_that_is_none_is_refused_by_name(stack: StackProcess, op: str, attrs: dict[str, Any], tensors: dict[str, Any]) -> None:
    given = {name: np.array([0, 1]) if shape == "ids" else np.ones(shape, np.float32) for name, shape in tensors.items()}
    with pytest.raises(RequestFailed, match=f"{op}: .*(; allowed: |is missing; give )") as caught:
        stack.request("compute", {"op": op, "attrs": attrs}, given)
    assert caught.value.error_class == "ValueError"


def test_steps_that_float64_does_not_count_are_refused(stack: StackProcess) -> None:
    given = {name: np.ones(2, np.float32) for name in ("weight", "gradient", "m", "v")} | {"step": np.array(2**63 - 1)}
    attrs = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0}
    with pytest.raises(RequestFailed, match="adamw_step: step is 9223372036854775807; allowed: "):
        stack.request("compute", {"op": "adamw_step", "attrs": attrs}, given)


def test_an_empty_tensor_is_answered_each_time(stack: StackProcess) -> None:
    """It has no buffer, so nothing of it can be kept."""
    for _ in range(3):
        answer = stack.request("compute", {"op": "elementary", "attrs": {"function": "exp"}}, {"x": np.ones(0, np.float32)})
        assert answer.tensors["y"].shape == (0,)


@pytest.mark.parametrize(
    ("device", "error_class"), [("TPU", "UserError"), ("METAL" if sys.platform == "linux" else "CUDA", "MissingError")]
)
def test_a_device_that_is_unknown_or_not_there(device: str, error_class: str) -> None:
    with pytest.raises(RequestFailed) as caught, StackProcess("tinygrad_lora", COMMAND, device):
        pass
    assert caught.value.error_class == error_class


def test_the_stack_knows_nothing_of_the_others(stack: StackProcess) -> None:
    """What a fresh interpreter has loaded after it made the stack: importlib is invisible to import-linter."""
    program = (
        "import sys; from stacks.tinygrad_lora.ops import TinygradLora; TinygradLora('CPU');"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "tinygrad" in loaded
    assert not {"torch", "bitsandbytes", "transformers", "peft", "mlx", "parity"} & set(loaded)
