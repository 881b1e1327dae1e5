"""A primitive's outputs and gradients to 300 bits: its formula on arrays of mpmath numbers, gradients by central differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import numpy as np

from parity.reference.primitive import Reference
from parity.reference.running_error import REFERENCE

BITS = 300
STEP = mpmath.mpf(2) ** -75
"""A difference's own error is about STEP^2 of the gradient; it leaves 225 bits of the difference."""

Formula = Callable[[Mapping[str, np.ndarray]], np.ndarray]

exp = np.frompyfunc(mpmath.exp, 1, 1)
sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)
cos = np.frompyfunc(mpmath.cos, 1, 1)
sin = np.frompyfunc(mpmath.sin, 1, 1)


def exactly(formula: Formula, tensors: Mapping[str, np.ndarray], output: str, gradients: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The output, and d sum(output_bar output) / d input for each of `gradients`; object arrays of mpmath numbers."""
    with mpmath.workprec(BITS):
        inputs = {name: number(array) if array.dtype.kind == "f" else array for name, array in tensors.items()}
        bar = inputs[f"{output}_bar"]
        answer = {output: formula(inputs)}
        for name in gradients:
            gradient = np.empty(inputs[name].shape, dtype=object)
            for index in np.ndindex(gradient.shape):
                ends = []
                for step in (STEP, -STEP):
                    moved = inputs[name].copy()
                    moved[index] += step
                    ends.append(np.sum(bar * formula({**inputs, name: moved})))
                gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
            answer[f"{name}_grad"] = gradient
    return answer


def number(array: np.ndarray) -> np.ndarray:
    """The same values as mpmath numbers."""
    converted: np.ndarray = np.frompyfunc(mpmath.mpf, 1, 1)(array.astype(object))
    return converted


def assert_within_its_own_error(
    reference: Reference, tensors: Mapping[str, np.ndarray], attrs: Mapping[str, Any], exact: Mapping[str, np.ndarray]
) -> None:
    """The reference lies as near to the exact values as it says of itself; what should be nothing is; and no gradient is all zero."""
    got = reference(tensors, attrs, REFERENCE)
    assert set(got) == set(exact)
    with mpmath.workprec(BITS):
        for name, one in got.items():
            off = np.abs(exact[name] - one.value.astype(object)).astype(np.float64)
            rest = float(STEP) ** 1.9  # of the differences
            assert np.all(off <= one.error + rest), (name, float(off.max()))
            assert np.abs(one.value).max() > one.error.max(), f"{name} may be zero: it would hide anything"
            assert one.error.max() < 1e-11, f"{name}: an error that says nothing"
