"""RMSNorm and LayerNorm, all of it in x's dtype; where that is bfloat16, in float32 and rounded once.

Legend: L any leading dimensions (sequences, tokens), D width.
"""

from __future__ import annotations

import torch
from torch import nn

from stacks.torch_qlora.fused_elementwise import fused_rms_norm


def rms_norm(x_LD: torch.Tensor, weight_D: torch.Tensor, *, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight, the mean over a row, [L, D] (arXiv:1910.07467)."""
    if x_LD.dtype == torch.bfloat16:
        return rms_norm(x_LD.float(), weight_D.float(), eps=eps).bfloat16()
    mean_square_L1 = x_LD.square().mean(dim=-1, keepdim=True)
    return x_LD / torch.sqrt(mean_square_L1 + eps) * weight_D


def layer_norm(x_LD: torch.Tensor, weight_D: torch.Tensor, bias_D: torch.Tensor, *, eps: float) -> torch.Tensor:
    """y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias, the means over a row, [L, D] (arXiv:1607.06450)."""
    if x_LD.dtype == torch.bfloat16:
        return layer_norm(x_LD.float(), weight_D.float(), bias_D.float(), eps=eps).bfloat16()
    return nn.functional.layer_norm(x_LD, weight_D.shape, weight_D, bias_D, eps)


class RmsNorm(nn.Module):
    """`rms_norm` as a place in a graph: what it computes can be seen and replaced there."""

    def __init__(self, weight_D: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight_D, eps
        self.fused_elementwise = False

    def forward(self, x_LD: torch.Tensor) -> torch.Tensor:
        """y [L, D]."""
        if self.fused_elementwise:
            return fused_rms_norm(x_LD, self.weight, self.eps)
        return rms_norm(x_LD, self.weight, eps=self.eps)


class LayerNorm(nn.Module):
    """`layer_norm` as a place in a graph."""

    def __init__(self, weight_D: nn.Parameter, bias_D: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight_D, bias_D, eps

    def forward(self, x_LD: torch.Tensor) -> torch.Tensor:
        """y [L, D]."""
        return layer_norm(x_LD, self.weight, self.bias, eps=self.eps)
