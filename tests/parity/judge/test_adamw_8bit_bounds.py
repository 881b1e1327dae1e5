"""The bound on what 8 bits keep of a moment: the nearest value of the map reaches it and does not leave it, any other does."""

from __future__ import annotations

import numpy as np
import pytest

from parity.reference.adamw_8bit import BLOCK_SIZE, MAPS, SMALLEST, adamw_8bit_step, kept_in_8_bits
from parity.reference.running_error import Arithmetic
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

FLOAT32 = Arithmetic("float32", CAPABILITIES.elementary)


def moments(name: str, seed: int) -> np.ndarray:
    """Four blocks over many decades, the third of zeros."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(4 * BLOCK_SIZE) * 10.0 ** rng.uniform(-9, 0, 4 * BLOCK_SIZE)
    values[2 * BLOCK_SIZE : 3 * BLOCK_SIZE] = 0.0
    return np.asarray(np.abs(values) if name == "v" else values, np.float32)


def codes_of(values: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest codes [B, 256], by trying each, and the blocks' absmax [B, 1]."""
    blocks = values.reshape(-1, BLOCK_SIZE)
    absmax = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks / np.where(absmax > 0, absmax, 1)
    return np.argmin(np.abs(scaled[..., None].astype(np.float64) - table.astype(np.float64)), axis=-1), absmax


def error_of(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return kept_in_8_bits(FLOAT32.exact(values), table).error


@pytest.mark.parametrize("name", ["m", "v"])
@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_value_is_within_and_the_next_but_one_is_not(name: str, seed: int) -> None:
    values, table = moments(name, seed), MAPS[name]
    codes, absmax = codes_of(values, table)
    error = error_of(values, table).reshape(codes.shape)
    kept = table[codes] * absmax
    off = np.abs(kept - values.reshape(codes.shape))
    assert (off <= error).all()
    alive = absmax[:, 0] > 0
    assert np.median((off[alive] + 1e-45) / error[alive]) > 0.9, "the bound is the distance itself"
    for other in (codes - 2, codes + 2):
        possible = (other >= 0) & (other < len(table)) & (absmax > 0)
        wrong = np.abs(table[np.clip(other, 0, len(table) - 1)] * absmax - values.reshape(codes.shape))
        assert (wrong > error)[possible].all()
    zeros = slice(2 * BLOCK_SIZE, 3 * BLOCK_SIZE)
    assert not error.reshape(-1)[zeros].any(), "a block of zeros is kept exactly"


def test_next_to_zero_the_value_of_its_own_sign_is_within() -> None:
    """As bitsandbytes' CUDA kernel keeps a sign."""
    values, table = np.zeros(BLOCK_SIZE, np.float32), MAPS["m"]
    values[0], values[1] = 1.0, -1e-8
    zero = int(np.flatnonzero(table == 0)[0])
    assert codes_of(values, table)[0][0, 1] == zero
    assert abs(float(table[zero - 1]) - float(values[1])) <= error_of(values, table)[1]
    assert abs(float(table[zero + 2]) - float(values[1])) > error_of(values, table)[1]


@pytest.mark.parametrize("length", [SMALLEST - 1, SMALLEST])
def test_a_short_tensor_keeps_its_moments(length: int) -> None:
    rng = np.random.default_rng(0)
    names = ("weight", "gradient", "m", "v")
    tensors = {**{name: np.asarray(np.abs(rng.standard_normal(length)), np.float32) for name in names}, "step": np.asarray(3)}
    attrs = {"lr": 1e-2, "beta1": 0.75, "beta2": 0.9375, "eps": 1e-2, "weight_decay": 0.1, "dtype": "float32"}
    narrow, plain = COMPUTE["adamw_8bit_step"](attrs, tensors), COMPUTE["adamw_step"](attrs, tensors)
    allowed = adamw_8bit_step(tensors, attrs, FLOAT32)
    for name in ("m_next", "v_next"):
        assert (np.abs(narrow[name] - allowed[name].value) <= allowed[name].error).all()
        assert np.array_equal(narrow[name], plain[name]) == (length < SMALLEST)
        assert (allowed[name].error.max() < 1e-5) == (length < SMALLEST)
