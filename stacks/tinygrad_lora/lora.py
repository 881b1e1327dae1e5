"""LoRA on a frozen linear (arXiv:2106.09685), with a given dropout mask.

Shape suffixes: B sequences, T tokens, I in_features, O out_features, R rank, P packed bytes, C blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinygrad import Tensor

from stacks.tinygrad_lora import nf4
from stacks.tinygrad_lora.linear import frozen_linear, linear
from stacks.tinygrad_lora.widen import wide


def scaling(*, alpha: float, rank: int, rslora: bool) -> float:
    """s: alpha / r, or alpha / r^(1/2) for rank-stabilised LoRA (arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


@dataclass(frozen=True, kw_only=True)
class Linears:
    """The linears of one section, by name: y = x W^T + bias, and with an adapter y + s (dropout(x) A^T) B^T.

    Attributes:
        tensors: NAME [O, I], or NAME.packed [P] and NAME.absmax [C] where the weight stays NF4; NAME.bias [O] and
            NAME.lora_a [R, I], NAME.lora_b [O, R] and NAME.scaling [1], which is s, where the linear has an adapter: in float32 with
            bfloat16, and cast in the product. Where elements of x are dropped, NAME.keep [B, T, I] (bool) and `kept_share` [1], which
            is 1 - dropout.
        out_features: O of each linear.
        block_size: of NF4, where a weight stays NF4.
        hook: sees NAME.base, NAME.lora_ax, NAME.lora_bax (not scaled yet) and NAME; NAME alone where there is no adapter.
    """

    tensors: Mapping[str, Tensor]
    out_features: Mapping[str, int]
    block_size: int | None
    hook: Callable[[str, Tensor], Tensor]

    def __call__(self, name: str, x_BTI: Tensor) -> Tensor:
        """y of the linear `name`, [B, T, O], in the dtype of x (float32, float64 or bfloat16)."""
        y_BTO = self._frozen(name, x_BTI)
        if f"{name}.lora_a" not in self.tensors:
            return self.hook(name, y_BTO)
        base_BTO = self.hook(f"{name}.base", y_BTO)
        ax_BTR = self.hook(f"{name}.lora_ax", linear(self._dropout(name, x_BTI), self._adapter(f"{name}.lora_a", x_BTI)))
        bax_BTO = self.hook(f"{name}.lora_bax", linear(ax_BTR, self._adapter(f"{name}.lora_b", x_BTI)))
        y_BTO = wide(base_BTO) + self.tensors[f"{name}.scaling"] * wide(bax_BTO)
        return self.hook(name, y_BTO.cast(x_BTI.dtype))

    def _adapter(self, name: str, x_BTI: Tensor) -> Tensor:
        return self.tensors[name].cast(x_BTI.dtype)

    def _dropout(self, name: str, x_BTI: Tensor) -> Tensor:
        keep_BTI = self.tensors.get(f"{name}.keep")
        # where, not a product: what is dropped is no part of the result, infinite or not
        return x_BTI if keep_BTI is None else keep_BTI.where(wide(x_BTI) / self.tensors["kept_share"], 0).cast(x_BTI.dtype)

    def _frozen(self, name: str, x_BTI: Tensor) -> Tensor:
        bias_O = self.tensors.get(f"{name}.bias")
        if self.block_size is None:
            return frozen_linear(x_BTI, self.tensors[name], bias_O)
        return nf4.nf4_linear(
            x_BTI, self.tensors[f"{name}.packed"], self.tensors[f"{name}.absmax"], bias_O,
            block_size=self.block_size, out_features=self.out_features[name], in_features=int(x_BTI.shape[-1]),
        )  # fmt: skip
