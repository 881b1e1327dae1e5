"""LoRA by peft: its own modules do the arithmetic, y = W x + s B (A dropout(x)) (arXiv:2106.09685).

Legend: T tokens, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from contract.worker import taps
from contract.worker.plan import Lora
from stacks.torch_qlora.fused_lora import dropped, fused_lora
from stacks.torch_qlora.linear import FrozenLinear, linear
from stacks.torch_qlora.nf4_linear import Linear4bit

ADAPTER = "default"


def inject(model: nn.Module, plan: Lora, adapter: Mapping[str, torch.Tensor], *, fused: bool = False) -> None:
    """Puts peft's modules in the place of the linears that have LoRA, in place; all other parameters are frozen.

    Args:
        adapter: PATH.lora_a [R, in] and PATH.lora_b [out, R] of each linear that has LoRA, PATH as in `model.named_modules()`. They
            become the parameters, in their own dtype; peft makes its own in float32 and casts by rules of its own, so those are never
            materialised.
        fused: `FusedLinear` in place of peft's own module.
    """
    if not adapter:
        return
    paths = [name.removesuffix(".lora_a") for name in adapter if name.endswith(".lora_a")]
    config = LoraConfig(
        r=plan.rank, lora_alpha=plan.alpha, use_rslora=plan.rslora, target_modules=f"({'|'.join(map(re.escape, paths))})",
        rank_pattern={re.escape(path): plan.rank_of(path) for path in paths if plan.rank_of(path) != plan.rank},
        alpha_pattern={re.escape(path): plan.alpha_of(path) for path in paths if plan.alpha_of(path) != plan.alpha},
        lora_dropout=0.0, bias="none",
    )  # fmt: skip
    if fused:
        config._register_custom_module({nn.Linear: FusedLinear})
    inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)
    for path, module in _adapted(model):
        module.cast_input_dtype_enabled = False  # by Master instead, the other way round
        module.lora_A[ADAPTER] = Master(adapter[f"{path}.lora_a"])
        module.lora_B[ADAPTER] = Master(adapter[f"{path}.lora_b"])


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters: PATH.lora_a and PATH.lora_b of each linear that has LoRA."""
    found: dict[str, nn.Parameter] = {}
    for path, module in _adapted(model):
        found[f"{path}.lora_a"] = module.lora_A[ADAPTER].weight
        found[f"{path}.lora_b"] = module.lora_B[ADAPTER].weight
    return found


def places(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """Which module computes which tap of the linear `name`: one, or four where peft's own module computes LoRA."""
    if not isinstance(module, lora.Linear) or isinstance(module, FusedLinear):
        return {name: module}
    return {
        f"{name}.base": module.base_layer,
        f"{name}.lora_ax": module.lora_A[ADAPTER],
        f"{name}.lora_bax": module.lora_B[ADAPTER],
        name: module,
    }


def set_dropout(model: nn.Module, keep: Callable[[str, int], torch.Tensor] | None, dropout: float) -> None:
    """What of A's inputs is dropped from now on.

    Args:
        keep: the mask [..., in_features] (True: kept) of a linear by its path and in_features, asked for in each forward pass, and again
            where a checkpointed block is computed again: it must answer the same. None: nothing is dropped.
    """
    for path, module in _adapted(model):
        asked = None if keep is None else partial(keep, path, module.in_features)
        module.lora_dropout[ADAPTER] = nn.Identity() if asked is None else GivenDropout(asked, dropout)


def select_rows(model: nn.Module, rows_BT: torch.Tensor | None) -> None:
    """Of a batch's masks, the rows that are computed from now on, in the backward pass too; bool. None: all of them."""
    for _, module in _adapted(model):
        if isinstance(module.lora_dropout[ADAPTER], GivenDropout):
            module.lora_dropout[ADAPTER].rows = rows_BT


def site(path: str) -> tuple[int, str]:
    """A linear's layer and name, as dropout masks are drawn for: (3, q_proj) of layers.3.q_proj, (-1, lm_head) of lm_head."""
    section, _, name = path.rpartition(".")
    return (int(section.removeprefix("layers.")) if section else -1), name


def _adapted(model: nn.Module) -> Iterator[tuple[str, lora.Linear]]:
    """The linears that have LoRA, by path."""
    return ((path, module) for path, module in list(model.named_modules()) if isinstance(module, lora.Linear))


class Master(nn.Linear):
    """A or B: a weight that is trained in its own dtype, float32 at least, and multiplied in that of what comes in."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x weight^T in x's dtype."""
        return linear(x, self.weight.to(x.dtype))


class GivenDropout(nn.Module):
    """x keep / (1 - dropout), in the place of peft's dropout, which draws its own mask."""

    def __init__(self, keep: Callable[[], torch.Tensor], dropout: float) -> None:
        super().__init__()
        self.keep, self.dropout = keep, dropout
        self.rows: torch.Tensor | None = None

    def mask(self) -> torch.Tensor:
        """[..., I]; of the rows that are computed alone, where `select_rows` named them."""
        keep = self.keep()
        return keep if self.rows is None else keep[self.rows]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I], exactly 0 where `mask` is False."""
        return dropped(x, self.mask(), self.dropout)


def given_dropout(keep_TI: torch.Tensor | None, dropout: float) -> GivenDropout | None:
    """The dropout that a request asks for; None where nothing is dropped.

    Raises:
        ValueError: a mask without a dropout, or a dropout without a mask.
    """
    if (keep_TI is not None) != (dropout > 0):
        got = "keep is missing" if keep_TI is None else "keep is given"
        raise ValueError(
            f"lora_linear: dropout is {dropout:g} and {got}; allowed: dropout above 0 with its mask keep, or neither; "
            "take the mask from contract/data/dropout.py, or leave both out"
        )
    return None if keep_TI is None else GivenDropout(lambda: keep_TI, dropout)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A linear with LoRA, to compute it otherwise than peft does.

    weight: gives the frozen weight [O, I] in a dtype. keep: the mask of the pass under way, [..., I]; None: nothing is dropped.
    """

    lora_a_RI: torch.Tensor
    lora_b_OR: torch.Tensor
    scale: float
    weight: Callable[[torch.dtype], torch.Tensor]
    keep: torch.Tensor | None
    dropout: float


def parts(module: nn.Module) -> Parts:
    """The parts of a linear of a graph that has LoRA."""
    assert isinstance(module, lora.Linear)
    base, site = module.base_layer, module.lora_dropout[ADAPTER]
    drops = isinstance(site, GivenDropout)
    return Parts(
        lora_a_RI=module.lora_A[ADAPTER].weight,
        lora_b_OR=module.lora_B[ADAPTER].weight,
        scale=module.scaling[ADAPTER],
        weight=lambda dtype: frozen_weight(base, dtype),
        keep=site.mask() if drops else None,
        dropout=site.dropout if drops else 0.0,
    )


def frozen_weight(linear: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """The weight [O, I] of a frozen linear, dequantised where it lies in NF4."""
    return (linear.dequantized() if isinstance(linear, Linear4bit) else linear.weight).to(dtype)


def _fused(module: lora.Linear, x: torch.Tensor) -> torch.Tensor:
    """y [..., O] of x [..., I]."""
    own = parts(module)
    return fused_lora(
        x, own.lora_a_RI, own.lora_b_OR, module.base_layer.bias, scale=own.scale, weight=lambda: own.weight(x.dtype), keep=own.keep,
        dropout=own.dropout,
    )  # fmt: skip


FusedLinear: type[nn.Module] = type("FusedLinear", (lora.Linear,), {"forward": _fused})
"""peft's module, its parameters and its scale, with the forward of fused_lora.py (made so, since a class of peft's has no type)."""


def lora_linear(
    x_TI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    lora_a_RI: torch.Tensor,
    lora_b_OR: torch.Tensor,
    *,
    alpha: float,
    rslora: bool,
    given_dropout: GivenDropout | None = None,
) -> torch.Tensor:
    """y = x weight^T + bias + s (dropout(x) lora_a^T) lora_b^T, [T, O], by the module that `inject` puts into a graph.

    s = alpha / R, or alpha / sqrt(R) with rslora (arXiv:2312.03732). x, lora_a and lora_b may need gradients.
    """
    (name, *_) = taps.LINEARS
    model = nn.ModuleDict({name: FrozenLinear(weight_OI, bias_O)})
    plan = Lora(rank=lora_a_RI.shape[0], alpha=alpha, rslora=rslora, targets=(name,))
    inject(model, plan, {f"{name}.lora_a": lora_a_RI, f"{name}.lora_b": lora_b_OR})
    module = model[name]
    if given_dropout is not None:
        module.set_submodule(f"lora_dropout.{ADAPTER}", given_dropout)
    # As a function of the given tensors: the module's own parameters are leaves of their own.
    given = {f"lora_A.{ADAPTER}.weight": lora_a_RI, f"lora_B.{ADAPTER}.weight": lora_b_OR}
    y_TO: torch.Tensor = torch.func.functional_call(module, given, (x_TI,))
    return y_TO
