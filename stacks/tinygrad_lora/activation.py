"""Activations, element by element, on this stack's own elementary functions."""

from __future__ import annotations

import math

from tinygrad import Tensor

from stacks.tinygrad_lora.elementary import erf, sigmoid, tanh

APPROXIMATIONS = ("none", "tanh")


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x) (arXiv:1702.03118), float32 or float64."""
    return x * sigmoid(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x / 2 (1 + erf(x / sqrt(2))), or its approximation by tanh (arXiv:1606.08415, section 2), float32 or float64.

    Args:
        approximate: "none", or "tanh": x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    if approximate == "none":
        return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1)
    return x * 0.5 * (tanh((x * x * x * 0.044715 + x) * math.sqrt(2 / math.pi)) + 1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up (arXiv:2002.05202), float32 or float64."""
    return silu(gate) * up
