"""What the tests of every primitive's bound share: how far an answer lies from the reference, in units of its bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from parity.judge.bounds import Bound
from parity.judge.verdict import within
from parity.reference.primitive import Reference
from parity.reference.running_error import REFERENCE, Arithmetic
from tests.parity.judge.legal_arithmetic import DECLARED, Number

Tensors = Mapping[str, np.ndarray]


class Judged:
    """One request: what the reference has, and what a stack may be off, the reference's own error included."""

    def __init__(self, reference: Reference, tensors: Tensors, attrs: Mapping[str, Any], dtype: str) -> None:
        with np.errstate(all="ignore"):
            exact, allowed = reference(tensors, attrs, REFERENCE), reference(tensors, attrs, Arithmetic(dtype, DECLARED))
        self.expected = {name: one.value for name, one in exact.items()}
        self.limits = {name: allowed[name].error + exact[name].error for name in exact}
        assert all(np.isfinite(limit).all() for limit in self.limits.values()), "a limit that everything would pass"

    def ratios(self, got: Mapping[str, Any]) -> dict[str, float]:
        """The largest |got - exact| / bound of each tensor; infinite where the bound is 0 and something else came."""
        assert set(got) == set(self.expected)
        found = {name: np.asarray(one.value if isinstance(one, Number) else one, dtype=np.float64) for name, one in got.items()}
        return {name: _largest(found[name], exact, self.limits[name]) for name, exact in self.expected.items()}


def ratios(reference: Reference, tensors: Tensors, attrs: Mapping[str, Any], dtype: str, got: Mapping[str, Any]) -> dict[str, float]:
    """As Judged.ratios, of one answer."""
    return Judged(reference, tensors, attrs, dtype).ratios(got)


def in_dtype(tensors: Tensors, dtype: str) -> dict[str, np.ndarray]:
    """The numbers rounded to a dtype; ids and masks as they are."""
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in tensors.items()}


def leaves(tensors: Tensors, *names: str) -> list[torch.Tensor]:
    """torch tensors that want gradients."""
    return [torch.tensor(tensors[name], requires_grad=True) for name in names]


def answered(outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor], bar: np.ndarray) -> dict[str, np.ndarray]:
    """The one output, and each input's gradient by autograd."""
    ((name, output),) = outputs.items()
    gradients = torch.autograd.grad(output, list(inputs.values()), torch.tensor(bar))
    found = {f"{one}_grad": gradient.numpy() for one, gradient in zip(inputs, gradients, strict=True)}
    return {name: output.detach().numpy(), **found}


def assert_edges(reference: Reference, tensors: Tensors, attrs: Mapping[str, Any]) -> None:
    """Through the comparison itself: just inside the bound passes, just past it fails, in every tensor and to either side."""
    judged = Judged(reference, tensors, attrs, "float32")
    for name, value in judged.expected.items():
        bound = Bound(judged.limits[name], "")
        assert bound.limit.max() > 0, name
        element = np.unravel_index(int(np.argmax(bound.limit)), bound.limit.shape)
        for factor, inside in ((0.999, True), (-0.999, True), (1.001, False), (-1.001, False)):
            moved = value.copy()
            moved[element] += factor * bound.limit[element]
            assert within(name, moved, value, bound).passed is inside, (name, factor)


def _largest(got: np.ndarray, exact: np.ndarray, limit: np.ndarray) -> float:
    assert got.shape == exact.shape
    error = np.abs(got - exact)
    assert not np.isnan(error).any()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(error == 0, 0.0, error / limit)))
