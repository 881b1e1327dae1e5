"""Matrix product and biased linear map.

Shape legend: M rows, K inner length, N columns, T tokens, I in_features, O out_features.
"""

from __future__ import annotations

import torch


def matmul(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """y = a b, [M, N], in the operands' dtype."""
    return torch.matmul(a_MK, b_KN)


def linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """y = x weight^T + bias, [T, O], in the operands' dtype."""
    return torch.nn.functional.linear(x_TI, weight_OI, bias_O)
