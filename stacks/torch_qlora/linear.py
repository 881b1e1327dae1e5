"""Matrix product and biased linear map.

Shape legend: M rows, K inner length, N columns, T tokens, I in_features, O out_features.
"""

from __future__ import annotations

import torch
from torch import nn


def matmul(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """y = a b, [M, N], in the operands' dtype."""
    return torch.matmul(a_MK, b_KN)


def linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """y = x weight^T + bias, [T, O], in the operands' dtype."""
    return torch.nn.functional.linear(x_TI, weight_OI, bias_O)


class FrozenLinear(nn.Linear):
    """`linear` with a weight [O, I] and a bias [O] that get no gradient."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
        self.weight = nn.Parameter(weight_OI, requires_grad=False)
        if bias_O is not None:
            self.bias = nn.Parameter(bias_O, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., O] of x [..., I]."""
        return linear(x, self.weight, self.bias)
