"""Activations, element by element, on this stack's own elementary functions: in float32, float64, or bfloat16, which is float32 inside
and rounded once.
"""

from __future__ import annotations

import math

from tinygrad import Tensor

from stacks.tinygrad_lora.elementary import erf, sigmoid, tanh
from stacks.tinygrad_lora.widen import wide

APPROXIMATIONS = ("none", "tanh")


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x) (arXiv:1702.03118)."""
    inner = wide(x)
    return (inner * sigmoid(inner)).cast(x.dtype)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x / 2 (1 + erf(x / sqrt(2))), or its approximation by tanh (arXiv:1606.08415, section 2).

    Args:
        approximate: "none", or "tanh": x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    inner = wide(x)
    if approximate == "none":
        return (inner * 0.5 * (erf(inner * math.sqrt(0.5)) + 1)).cast(x.dtype)
    return (inner * 0.5 * (tanh((inner * inner * inner * 0.044715 + inner) * math.sqrt(2 / math.pi)) + 1)).cast(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up (arXiv:2002.05202)."""
    return silu(gate) * up
