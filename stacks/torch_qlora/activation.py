"""The activations of an MLP, element by element, in x's dtype."""

from __future__ import annotations

import math

import torch
from torch import nn

APPROXIMATIONS = ("none", "tanh")


def silu(x: torch.Tensor) -> torch.Tensor:
    """y = x / (1 + exp(-x)) (arXiv:1702.03118)."""
    return nn.functional.silu(x)


def gelu(x: torch.Tensor, *, approximate: str) -> torch.Tensor:
    """y = x / 2 (1 + erf(x / sqrt(2))); tanh: y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (arXiv:1606.08415).

    erf is torch.erf: the erf inside torch's fused CPU kernel is a polynomial that is 1e-7 off in float32, so that
    gelu(-2.76) is 739 ulp off, four times what the formula's roundings allow.

    Raises:
        ValueError: an unknown approximation.
    """
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"gelu: approximate is {approximate!r}; allowed: {', '.join(APPROXIMATIONS)}")
    if approximate == "tanh":
        return nn.functional.gelu(x, approximate="tanh")
    if x.dtype == torch.bfloat16:  # four roundings to bfloat16 on the way are three too many
        return gelu(x.float(), approximate=approximate).bfloat16()
    return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """y = silu(gate) up (arXiv:2002.05202)."""
    return silu(gate) * up
