"""RMSNorm and SwiGLU as one operation of autograd each: fewer passes over memory, and only their inputs are kept.

The formulas are those of norm.py and activation.py, and so is what is rounded to bfloat16: the norm once, at its end; silu, its product.

Legend: L any leading dimensions (sequences, tokens), D width of a row, F intermediate_size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _RmsNorm(torch.autograd.Function):
    """y = x r w, r = 1 / sqrt(mean(x^2) + eps); the weight is frozen. Kept are x and r."""

    @staticmethod
    def forward(ctx: Any, x_LD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """y [L, D]."""
        wide_LD = _wide(x_LD)
        square_L1 = torch.linalg.vecdot(wide_LD, wide_LD).unsqueeze(-1)
        r_L1 = 1 / torch.sqrt(square_L1 / x_LD.shape[-1] + eps)
        ctx.save_for_backward(x_LD, weight_D, r_L1)
        return (wide_LD * r_L1).mul_(weight_D).to(x_LD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar_LD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """r (g - x r^2 mean(g x)), g = bar w."""
        x_LD, weight_D, r_L1 = ctx.saved_tensors
        g_LD, wide_LD = _wide(bar_LD) * _wide(weight_D), _wide(x_LD)
        mean_L1 = torch.linalg.vecdot(g_LD, wide_LD).unsqueeze(-1) / x_LD.shape[-1]
        return g_LD.addcmul_(wide_LD, mean_L1 * r_L1.square(), value=-1).mul_(r_L1).to(x_LD.dtype), None, None


class _SwiGlu(torch.autograd.Function):
    """y = silu(gate) up (arXiv:2002.05202). Kept are gate and up, and no silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate_LF: torch.Tensor, up_LF: torch.Tensor) -> torch.Tensor:
        """y [L, F]."""
        ctx.save_for_backward(gate_LF, up_LF)
        return torch.nn.functional.silu(gate_LF).mul_(up_LF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar_LF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of gate: bar up silu'(gate); of up: bar silu(gate)."""
        gate_LF, up_LF = ctx.saved_tensors
        bar_gate_LF = torch.ops.aten.silu_backward(bar_LF * up_LF, gate_LF)
        return bar_gate_LF, torch.nn.functional.silu(gate_LF).mul_(bar_LF)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype.itemsize < torch.float32.itemsize else x


fused_rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] = _RmsNorm.apply
fused_swiglu: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _SwiGlu.apply
