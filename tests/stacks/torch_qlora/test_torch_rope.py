"""RoPE's frequencies, tables and rotation: the formulas in extended precision, transformers' scaling, refusals in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from contract.model.layouts.rope import RopeScaling
from stacks.torch_qlora import rope
from tests.stacks.torch_qlora.tiny_torch_graph import draw, gamma, unit
from tests.stacks.torch_qlora.torch_compute import DTYPES, assert_rounded, computed, drawn, wide

TORCH = {"float32": torch.float32, "float64": torch.float64}
E, THETA = 20, 5000.0
LONGEST = 1_048_575
LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
}  # fmt: skip


def _frequencies(scaling: dict[str, Any] | None) -> np.ndarray:
    """Written from the table in contract/model/layouts/rope.py, one frequency at a time."""
    found = []
    for i in range(E // 2):
        f = np.longdouble(THETA) ** (-np.longdouble(2 * i) / E)
        if scaling is not None and scaling["rope_type"] == "linear":
            f /= scaling["factor"]
        elif scaling is not None:
            length, low, high = (scaling[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
            turns = length * f / (2 * np.longdouble(math.pi))
            if turns < low:
                f /= scaling["factor"]
            elif turns <= high:
                s = (turns - low) / (high - low)
                f = (1 - s) * f / scaling["factor"] + s * f
        found.append(f)
    return np.array(found)


def _error_of_frequencies(scaling: dict[str, Any] | None) -> float:
    """Relative: the exponent's rounding counts log(theta) times; the blend's s is off by its own terms' over their difference."""
    steps = math.ceil(math.log(THETA)) + 3
    return gamma(steps if scaling is None else 8 * steps, "float64")


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["none", "linear", "llama3"])
def test_frequencies_are_the_formula(scaling: dict[str, Any] | None) -> None:
    got = rope.frequencies(E, THETA, None if scaling is None else RopeScaling.model_validate(scaling))
    assert got.dtype == torch.float64
    exact = _frequencies(scaling)
    assert np.all(np.abs(got.numpy() - exact) <= _error_of_frequencies(scaling) * exact)


@pytest.mark.parametrize("scaling", [LINEAR, LLAMA3], ids=["linear", "llama3"])
def test_scaled_frequencies_are_transformers(scaling: dict[str, Any]) -> None:
    """transformers computes them in float32."""
    config = LlamaConfig(head_dim=E, max_position_embeddings=4096, rope_parameters=scaling | {"rope_theta": THETA})
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    ours = rope.frequencies(E, THETA, RopeScaling.model_validate(scaling))
    assert factor == 1
    np.testing.assert_array_less((theirs.double() - ours).abs().numpy(), 64 * unit("float32") * ours.numpy())


def test_llama3_has_every_kind_of_frequency_here_and_a_factor_of_one_changes_no_bit() -> None:
    plain, scaled = rope.frequencies(E, THETA, None), rope.frequencies(E, THETA, RopeScaling.model_validate(LLAMA3))
    kept, slowed = scaled == plain, scaled == plain / 8
    assert kept.any()
    assert slowed.any()
    assert (~kept & ~slowed).any()
    assert torch.equal(rope.frequencies(E, THETA, RopeScaling.model_validate(LLAMA3 | {"factor": 1.0})), plain)


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3], ids=["none", "linear", "llama3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_are_made_in_float64_and_cast_once_up_to_the_longest_position(dtype: str, scaling: dict[str, Any] | None) -> None:
    positions = np.array([0, 1, 2, 511, 4096, 100_003, LONGEST])
    got = computed("rope_tables", {"head_dim": E, "theta": THETA, "scaling": scaling}, {"positions": positions}, dtype)
    angles = np.outer(positions, np.tile(_frequencies(scaling), 2))
    of_angle = (_error_of_frequencies(scaling) + 2 * unit("float64")) * angles
    for name, exact in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        assert got[name].dtype == dtype
        assert np.all(np.abs(got[name] - exact) <= of_angle + 2 * unit(dtype) * np.abs(exact))
    assert np.all(got["cos"][0] == 1)
    assert not got["sin"][0].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_sequence_is_turned_by_its_own_positions_and_its_gradient_is_turned_back(dtype: str) -> None:
    positions = np.array([[0, 1, 2, 3, 4], [7, 700, 0, 65_536, LONGEST]])
    given = {"x": drawn(0, 2, 3, 5, E, dtype=dtype), "y_bar": drawn(1, 2, 3, 5, E, dtype=dtype)}
    got = computed("rope", {"theta": THETA, "scaling": None}, given | {"positions": positions}, dtype)
    angles = (wide(positions)[..., None] * _frequencies(None))[:, None]
    turn = np.exp(1j * angles)
    # The angles' error in float64, relative to the pair's size; then two products and a sum.
    steps = 4 + math.ceil(_error_of_frequencies(None) * LONGEST / unit(dtype))
    for name, exact in (("y", _paired(given["x"]) * turn), ("x_grad", _paired(given["y_bar"]) * turn.conj())):
        size = np.concatenate(2 * [2 * np.abs(exact)], axis=-1)
        assert_rounded(got[name], np.concatenate([exact.real, exact.imag], axis=-1), size, steps, dtype)


def _paired(x: np.ndarray) -> np.ndarray:
    first, second = np.split(wide(x), 2, axis=-1)
    return first + 1j * second


def test_rotation_keeps_the_first_token_bit_for_bit() -> None:
    x = draw(2, 3, 7, E)
    cos_TE, sin_TE = rope.tables(torch.arange(7), rope.frequencies(E, THETA, None), dtype=torch.float64, device=x.device)
    assert torch.equal(rope.rotate(x, cos_TE, sin_TE)[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({}, "theta is None; allowed: a finite number above 0"),
        ({"theta": 0.0}, "theta is 0.0; allowed"),
        ({"theta": THETA, "scaling": {"rope_type": "yarn", "factor": 2.0}}, "scaling: rope_type"),
        ({"theta": THETA, "scaling": "linear"}, "scaling: got .*; allowed: "),
        ({"theta": THETA, "scaling": {"rope_type": "linear"}}, "scaling: factor: got nothing; allowed: a value"),
        ({"theta": THETA, "scaling": LLAMA3 | {"low_freq_factor": 5.0}}, "llama3 with low_freq_factor < high_freq_factor"),
    ],
)
@pytest.mark.parametrize("op", ["rope", "rope_tables"])
def test_attributes_that_are_not_ropes_are_refused(op: str, attrs: dict[str, Any], message: str) -> None:
    given = {"positions": np.zeros((1, 2), np.int64), "x": drawn(0, 1, 1, 2, E)} if op == "rope" else {"positions": np.zeros(2, np.int64)}
    with pytest.raises(ValueError, match=f"{op}: .*{message}"):
        computed(op, attrs | ({} if op == "rope" else {"head_dim": E}), given, "float32")


def test_a_negative_position_and_an_odd_head_are_refused() -> None:
    positions = np.array([[0, 1], [2, -3]])
    with pytest.raises(ValueError, match=r"rope: positions\[1, 1\] is -3; allowed: 0 and more"):
        computed("rope", {"theta": THETA}, {"x": drawn(0, 2, 1, 2, E), "positions": positions}, "float32")
    with pytest.raises(ValueError, match="rope_tables: head_dim is 5; allowed: an even number"):
        computed("rope_tables", {"theta": THETA, "head_dim": 5}, {"positions": positions[0]}, "float32")
