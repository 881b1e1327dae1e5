"""RoPE's reference against complex multiplication to 300 bits; llama3's frequencies against transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mpmath
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from parity.checks.rope import SCALINGS
from parity.reference.rope import rope, rope_tables
from parity.reference.running_error import REFERENCE
from tests.parity.reference import high_precision

HEAD_DIM, THETA = 6, 1e4


def frequencies(scaling: Mapping[str, Any] | None) -> list[mpmath.mpf]:
    """llama3 by its wavelength's three cases."""
    f = [mpmath.power(THETA, mpmath.mpf(-2 * i) / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    if scaling is None:
        return f
    if scaling["rope_type"] == "linear":
        return [one / scaling["factor"] for one in f]
    low, high, length = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
    changed = []
    for one in f:
        wavelength = 2 * mpmath.pi / one
        s = (length / wavelength - low) / (high - low)
        between = (1 - s) * one / scaling["factor"] + s * one
        changed.append(one if wavelength < length / high else one / scaling["factor"] if wavelength > length / low else between)
    return changed


@pytest.mark.parametrize("scaling", list(SCALINGS))
def test_rotation_and_gradient(scaling: str) -> None:
    """Each pair (x_i, x_(i + E/2)) is a complex number, turned by the angle."""
    rng = np.random.default_rng(5)
    positions = np.array([[0, 7, 900, 1_048_575]])
    tensors = {"x": rng.standard_normal((1, 2, 4, HEAD_DIM)), "y_bar": rng.standard_normal((1, 2, 4, HEAD_DIM)), "positions": positions}

    def formula(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        f, half, y = frequencies(SCALINGS[scaling]), HEAD_DIM // 2, tensors["x"].copy()
        for b, h, t, i in np.ndindex(*y.shape[:3], half):
            turned = mpmath.mpc(tensors["x"][b, h, t, i], tensors["x"][b, h, t, i + half]) * mpmath.expj(int(positions[b, t]) * f[i])
            y[b, h, t, i], y[b, h, t, i + half] = turned.real, turned.imag
        return y

    exact = high_precision.exactly(formula, tensors, "y", ("x",))
    attrs = {"theta": THETA, "scaling": SCALINGS[scaling]}
    got = rope(tensors, attrs, REFERENCE)
    assert set(got) == set(exact)
    for name, one in got.items():
        off = np.abs(exact[name] - one.value.astype(object)).astype(np.float64)
        assert np.all(off <= one.error + 1e-40), name
        assert one.error.max() < 1e-7, name  # at position 1,048,575
        assert one.error[:, :, :2].max() < 1e-12, name
        assert np.abs(one.value).max() > 0.1


def test_tables_hold_each_frequency_twice_and_begin_with_one_and_zero() -> None:
    got = rope_tables({"positions": np.array([0, 3])}, {"head_dim": 4, "theta": 100.0, "scaling": None}, REFERENCE)
    np.testing.assert_allclose(got["cos"].value, [[1] * 4, np.cos([3, 0.3, 3, 0.3])], rtol=1e-15)
    np.testing.assert_allclose(got["sin"].value, [[0] * 4, np.sin([3, 0.3, 3, 0.3])], rtol=1e-15)


@pytest.mark.parametrize("scaling", ["llama3", "llama3, other values"])
def test_llama3_as_transformers_has_it(scaling: str) -> None:
    """transformers computes frequencies in float32; position 1 shows them."""
    of = SCALINGS[scaling]
    assert of is not None
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, head_dim=64, rope_parameters={**of, "rope_theta": 5e5})
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = np.arcsin(rope_tables({"positions": np.array([1])}, {"head_dim": 64, "theta": 5e5, "scaling": of}, REFERENCE)["sin"].value)
    np.testing.assert_allclose(ours[0, :32], theirs.numpy(), rtol=1e-6)
    assert len(np.unique(ours[0, :32] / 5e5 ** (-np.arange(0, 64, 2) / 64))) > 3, "a frequency in between must be among them"
