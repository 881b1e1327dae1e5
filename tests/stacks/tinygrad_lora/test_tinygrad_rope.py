"""RoPE of the tinygrad stack against its formula in NumPy, with linear and llama3 scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, ask, close, draw

THETA, HEAD_DIM = 1e4, 8
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip


def frequency(i: int, scaling: dict[str, Any] | None) -> float:
    """One frequency, in Python's floats, as contract/model/layouts/rope.py has it."""
    plain = THETA ** (-2 * i / HEAD_DIM)
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return float(plain / scaling["factor"])
    wavelength, length = 2 * np.pi / plain, scaling["original_max_position_embeddings"]
    if wavelength < length / scaling["high_freq_factor"]:
        return plain
    if wavelength > length / scaling["low_freq_factor"]:
        return float(plain / scaling["factor"])
    share = (length / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
    return float((1 - share) * plain / scaling["factor"] + share * plain)


def angles(positions: np.ndarray, scaling: dict[str, Any] | None) -> np.ndarray:
    frequencies = [frequency(i, scaling) for i in range(HEAD_DIM // 2)]
    return positions[..., None] * np.array([*frequencies, *frequencies])


def test_llama3_scaling_has_all_three_kinds_of_frequency_here() -> None:
    ratios = {round(frequency(i, LLAMA3) / frequency(i, None), 6) for i in range(HEAD_DIM // 2)}
    assert {1.0, 0.125} < ratios


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["none", "linear", "llama3"])
def test_the_tables_are_float64s_rounded_once(stack: StackProcess, scaling: dict[str, Any] | None) -> None:
    positions = np.array([0, 1, 77, 8191, 1_048_575])
    angle = angles(positions, scaling)
    for dtype, spacing in (("float32", 0.51), ("float64", 4e6)):  # an angle's own rounding is 1e-10 at the longest position
        answer = stack.compute("rope_tables", {"dtype": dtype, "head_dim": HEAD_DIM, "theta": THETA, "scaling": scaling},
                               {"positions": positions}).tensors  # fmt: skip
        for name, wanted in (("cos", np.cos(angle)), ("sin", np.sin(angle))):
            limit = spacing * np.spacing(np.abs(wanted).astype(dtype)) + 1e-9
            assert (np.abs(answer[name] - wanted) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", [None, LLAMA3], ids=["none", "llama3"])
def test_rope_and_its_gradient(stack: StackProcess, dtype: str, scaling: dict[str, Any] | None) -> None:
    tensors = draw(dtype, 5, x=(2, 3, 4, HEAD_DIM), y_bar=(2, 3, 4, HEAD_DIM))
    positions = np.array([[0, 1, 2, 3], [5, 2, 99, 1000]])
    answer = ask(stack, "rope", {**tensors, "positions": positions}, theta=THETA, scaling=scaling)
    angle, half = angles(positions, scaling)[:, None], HEAD_DIM // 2
    x, bar = tensors["x"].astype(np.float64), tensors["y_bar"].astype(np.float64)
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    close(answer["y"], x * np.cos(angle) + turned * np.sin(angle), 4)
    shared = bar * np.sin(angle)
    close(answer["x_grad"], bar * np.cos(angle) + np.concatenate([shared[..., half:], -shared[..., :half]], axis=-1), 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_of_one_is_no_scaling(stack: StackProcess, dtype: str) -> None:
    positions = {"positions": np.arange(50)}
    plain = stack.compute("rope_tables", {"dtype": dtype, "head_dim": HEAD_DIM, "theta": THETA}, positions).tensors
    attrs = {"dtype": dtype, "head_dim": HEAD_DIM, "theta": THETA, "scaling": {**LLAMA3, "factor": 1.0}}
    scaled = stack.compute("rope_tables", attrs, positions).tensors
    np.testing.assert_array_equal(plain["cos"], scaled["cos"])
    np.testing.assert_array_equal(plain["sin"], scaled["sin"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": 0.0}, r"theta is 0\.0; allowed: a number over 0"),
        ({"scaling": {"rope_type": "yarn", "factor": 2.0}}, "scaling.rope_type: .*'linear' or 'llama3'"),
        ({"scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor < high_freq_factor"),
    ],
)
def test_attributes_that_are_refused(stack: StackProcess, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestFailed, match=message) as caught:
        stack.compute("rope_tables", {"head_dim": HEAD_DIM, "theta": THETA, **change}, {"positions": np.arange(3)})
    assert caught.value.error_class == "ValueError"


def test_a_negative_position_is_refused(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="a position is -2; allowed: 0 and above"):
        stack.compute("rope_tables", {"head_dim": HEAD_DIM, "theta": THETA}, {"positions": np.array([0, -2])})


def test_without_theta_nothing_is_guessed(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="attribute 'theta' is missing"):
        stack.compute("rope_tables", {"head_dim": HEAD_DIM}, {"positions": np.arange(3)})
