"""RoPE's bounds: tables made in float64 and cast once stay inside, angles in float32 do not.

Legend: B sequences, H heads, T tokens, E head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from parity.checks import rope as check
from parity.reference.rope import rope, rope_tables
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings

Attrs = Mapping[str, Any]
POSITIONS = np.array([0, 1, 2, 77, 4_095, 131_071, 1_048_574, 1_048_575])


def attributes(scaling: str, theta: float = 1e4) -> dict[str, Any]:
    return {"theta": theta, "scaling": check.SCALINGS[scaling]}


def frequencies(head_dim: int, attrs: Attrs, way: str) -> np.ndarray:
    """By a power, its inverse's reciprocal, or an exponential: three arrangements of float64."""
    exponents, theta = np.arange(0, head_dim, 2) / head_dim, attrs["theta"]
    f: np.ndarray = {
        "power": lambda: theta**-exponents,
        "reciprocal": lambda: 1.0 / theta**exponents,
        "exponential": lambda: np.exp(np.arange(0, head_dim, 2) * (-math.log(theta) / head_dim)),
    }[way]()
    scaling = attrs["scaling"]
    if scaling is None:
        return f
    if scaling["rope_type"] == "linear":
        return f * (1 / scaling["factor"]) if way == "reciprocal" else f / scaling["factor"]
    return llama3(f, scaling)


def llama3(f: np.ndarray, scaling: Attrs) -> np.ndarray:
    """One frequency at a time, by branches, as arXiv:2407.21783's released code has it."""
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    length, new = scaling["original_max_position_embeddings"], []
    for one in f:
        wavelength = 2 * math.pi / one
        if wavelength < length / high:
            new.append(one)
        elif wavelength > length / low:
            new.append(one / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            new.append((1 - smooth) * one / factor + smooth * one)
    return np.array(new)


def tables(positions: np.ndarray, head_dim: int, attrs: Attrs, dtype: str, way: str = "power") -> dict[str, np.ndarray]:
    angle = positions[..., None] * frequencies(head_dim, attrs, way)
    if way == "power" and attrs.get("bug") == "float32 angles":
        angle = (positions[..., None].astype(np.float32) * frequencies(head_dim, attrs, way).astype(np.float32)).astype(np.float64)
    angle = np.concatenate([angle, angle], -1)
    return {"cos": np.cos(angle).astype(dtype), "sin": np.sin(angle).astype(dtype)}


@pytest.mark.parametrize("scaling", list(check.SCALINGS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", ["power", "reciprocal", "exponential"])
def test_tables_made_in_float64_stay_inside(way: str, dtype: str, scaling: str) -> None:
    for head_dim in (2, 6, 64):
        for theta in check.THETAS:
            attrs = {**attributes(scaling, theta), "head_dim": head_dim}
            got = tables(POSITIONS, head_dim, attrs, dtype, way)
            found = primitive_bounds.ratios(rope_tables, {"positions": POSITIONS}, attrs, dtype, got)
            assert max(found.values()) <= 1, (head_dim, theta, found)


def test_the_float32_bound_is_one_rounding() -> None:
    attrs = {**attributes("none"), "head_dim": 64}
    judged = primitive_bounds.Judged(rope_tables, {"positions": POSITIONS}, attrs, "float32")
    for name, value in judged.expected.items():
        excess = judged.limits[name] - 2.0**-24 * np.abs(value)
        assert excess.max() < 0.2 * 2.0**-24, name
    assert max(judged.ratios(tables(POSITIONS, 64, attrs, "float32")).values()) > 0.5


@pytest.mark.parametrize("scaling", list(check.SCALINGS))
def test_the_float64_bound_is_no_more_than_the_longest_angle_needs(scaling: str) -> None:
    """Exact tables to 120 bits: the reference lies inside of its own error."""
    attrs = {**attributes(scaling), "head_dim": 6}
    judged = primitive_bounds.Judged(rope_tables, {"positions": POSITIONS}, attrs, "float64")
    with mpmath.workprec(120):
        f = [mpmath.mpf(attrs["theta"]) ** (mpmath.mpf(-2 * i) / 6) for i in range(3)]
        f = exact_scaling(f, attrs["scaling"])
        angles = [[int(position) * one for one in (*f, *f)] for position in POSITIONS]
        exact = {name: np.array([[getattr(mpmath, name)(one) for one in row] for row in angles], dtype=object) for name in ("cos", "sin")}
        for name, value in exact.items():
            errors = np.abs(judged.expected[name] - value).astype(np.float64)
            assert np.all(errors <= judged.limits[name] / 2), name
            assert judged.limits[name].max() < 2e-8


def exact_scaling(f: list[mpmath.mpf], scaling: Attrs | None) -> list[mpmath.mpf]:
    if scaling is None:
        return f
    if scaling["rope_type"] == "linear":
        return [one / scaling["factor"] for one in f]
    low, high, length = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
    blends = [min(max((length * one / (2 * mpmath.pi) - low) / (high - low), 0), 1) for one in f]
    return [(1 - s) * one / scaling["factor"] + s * one for s, one in zip(blends, f, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_in_float32_fail_by_a_wide_factor(dtype: str) -> None:
    attrs = {**attributes("none"), "head_dim": 64}
    got = tables(POSITIONS, 64, {**attrs, "bug": "float32 angles"}, dtype)
    found = primitive_bounds.ratios(rope_tables, {"positions": POSITIONS}, attrs, dtype, got)
    assert min(found.values()) > (1e4 if dtype == "float32" else 1e6), found


def test_angles_in_float32_fail_at_short_positions_too() -> None:
    positions, attrs = np.arange(32), {**attributes("none"), "head_dim": 64}
    got = tables(positions, 64, {**attrs, "bug": "float32 angles"}, "float32")
    assert min(primitive_bounds.ratios(rope_tables, {"positions": positions}, attrs, "float32", got).values()) > 100


@pytest.mark.parametrize("wrong", ["none", "linear", "llama3, other values"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_scaling_fails_by_a_wide_factor(dtype: str, wrong: str) -> None:
    attrs = {**attributes("llama3"), "head_dim": 64}
    got = tables(POSITIONS, 64, attributes(wrong), dtype)
    assert min(primitive_bounds.ratios(rope_tables, {"positions": POSITIONS}, attrs, dtype, got).values()) > 1e5


SHAPE = (2, 3, 4, 6)


def drawn(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, check.LONGEST + 1, (SHAPE[0], SHAPE[2]))
    return {"x": check.ROWS[kind](rng, SHAPE), "y_bar": rng.standard_normal(SHAPE), "positions": positions}


def rotated(rounding: Rounding, tensors: Mapping[str, np.ndarray], attrs: Attrs) -> dict[str, Number]:
    """x cos + rotate_half(x) sin, with tables that float32 holds."""
    cos, sin = (rounding.given(table[:, None]) for table in tables(tensors["positions"], SHAPE[-1], attrs, "float32").values())
    x, y_bar = rounding.given(tensors["x"]), rounding.given(tensors["y_bar"])
    half = SHAPE[-1] // 2

    def turned(array: np.ndarray) -> np.ndarray:
        return np.concatenate([-array[..., half:], array[..., :half]], -1)

    return {"y": x * cos + x.map(turned) * sin, "x_grad": y_bar * cos - (y_bar.map(turned) * sin)}


@pytest.mark.parametrize("kind", list(check.ROWS))
def test_every_legal_rotation_stays_inside(kind: str) -> None:
    tensors, attrs = primitive_bounds.in_dtype(drawn(kind), "float32"), attributes("llama3")
    judged = primitive_bounds.Judged(rope, tensors, attrs, "float32")
    for rounding in roundings():
        found = judged.ratios(rotated(rounding, tensors, attrs))
        assert max(found.values()) <= 1, (str(rounding), found)


def by_torch(tensors: Mapping[str, np.ndarray], attrs: Attrs, bug: str = "") -> dict[str, np.ndarray]:
    (x,) = primitive_bounds.leaves(tensors, "x")
    made = tables(tensors["positions"], x.shape[-1], {**attrs, "bug": bug}, tensors["x"].dtype.name)
    cos, sin = (torch.tensor(table)[:, None] for table in made.values())
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    if bug == "pairs":
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    y = x * cos + (-turned if bug == "the other way" else turned) * sin
    return primitive_bounds.answered({"y": y}, {"x": x}, tensors["y_bar"])


@pytest.mark.parametrize("kind", list(check.ROWS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_stays_inside(dtype: str, kind: str) -> None:
    tensors, attrs = primitive_bounds.in_dtype(drawn(kind), dtype), attributes("linear")
    found = primitive_bounds.ratios(rope, tensors, attrs, dtype, by_torch(tensors, attrs))
    assert max(found.values()) <= 1, found
    if (kind, dtype) == ("gaussian", "float32"):
        assert min(found.values()) > 0.1, found


@pytest.mark.parametrize("bug", ["float32 angles", "pairs", "the other way"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors, attrs = drawn("gaussian"), attributes("none")
    found = primitive_bounds.ratios(rope, tensors, attrs, "float64", by_torch(tensors, attrs, bug))
    assert min(found.values()) > 1e4, found


@pytest.mark.parametrize("kind", ["gaussian", "small integers", "edge of the domain"])
def test_just_past_the_bound_fails(kind: str) -> None:
    primitive_bounds.assert_edges(rope, primitive_bounds.in_dtype(drawn(kind), "float32"), attributes("llama3"))
