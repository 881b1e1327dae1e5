"""A frozen linear whose weight stays in NF4, in bitsandbytes' Linear4bit's place.

Shape legend: O out_features, I in_features.
"""

from __future__ import annotations

import torch
from torch import nn

from stacks.torch_qlora import nf4


class Linear4bit(nn.Linear):
    """A frozen linear whose weight lies in NF4, its absmax nested where `double_quant`; in bitsandbytes' Linear4bit's place.

    Args:
        weight_OI: float32; quantised here and let go.
        given_offset: a scalar to nest with, in place of the mean of absmax as this stack sums it.

    Raises:
        ValueError: as `quantize`.
    """

    def __init__(
        self,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        *,
        block_size: int,
        double_quant: bool,
        given_offset: torch.Tensor | None = None,
    ) -> None:
        super().__init__(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
        quantized = nf4.quantize(weight_OI, block_size)
        self.block_size, self.double_quant = block_size, double_quant
        self.weight = nn.Parameter(quantized.packed, requires_grad=False)
        if bias_O is not None:
            self.bias = nn.Parameter(bias_O, requires_grad=False)
        mean = nf4.offset(quantized.absmax) if given_offset is None else given_offset
        self.absmax = (*nf4.nest(quantized.absmax, mean), mean) if double_quant else (quantized.absmax,)
        self._flushed = nf4.kernel_flushes(nf4.unnest(*self.absmax) if double_quant else quantized.absmax)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., O] of x [..., I], in x's dtype; no dequantised weight is kept for the backward pass."""
        return nf4.frozen_linear(x, lambda: self.dequantized().to(x.dtype), self.bias)

    def dequantized(self) -> torch.Tensor:
        """The weight that the codes stand for, [O, I] float32."""
        absmax = nf4.unnest(*self.absmax) if self.double_quant else self.absmax[0]
        quantized = nf4.Quantized(packed=self.weight, absmax=absmax, flushed=self._flushed)
        return nf4.dequantize(quantized, block_size=self.block_size, out_features=self.out_features, in_features=self.in_features)
