"""LoRA by peft: its own modules do the arithmetic, y = W x + s B (A dropout(x)) (arXiv:2106.09685).

Legend: T tokens, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from contract.worker import taps
from contract.worker.plan import Lora
from stacks.torch_qlora.linear import FrozenLinear

ADAPTER = "default"


def inject(model: nn.Module, plan: Lora, adapter: Mapping[str, torch.Tensor]) -> None:
    """Puts peft's modules in the place of the linears that have LoRA, in place; all other parameters are frozen.

    Args:
        adapter: PATH.lora_a [R, in] and PATH.lora_b [out, R] of each linear, PATH as in `model.named_modules()`; their dtype is
            the adapter's. peft makes its own in float32 and casts by rules of its own, so those are never materialised.
    """
    if not adapter:
        return
    config = LoraConfig(
        r=plan.rank, lora_alpha=plan.alpha, use_rslora=plan.rslora, target_modules=list(plan.targets), lora_dropout=0.0, bias="none"
    )
    inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)
    for path, module in model.named_modules():
        if isinstance(module, lora.Linear):
            module.lora_A[ADAPTER].weight = nn.Parameter(adapter[f"{path}.lora_a"])
            module.lora_B[ADAPTER].weight = nn.Parameter(adapter[f"{path}.lora_b"])


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters: PATH.lora_a and PATH.lora_b of each linear that has LoRA."""
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        if isinstance(module, lora.Linear):
            found[f"{path}.lora_a"] = module.lora_A[ADAPTER].weight
            found[f"{path}.lora_b"] = module.lora_B[ADAPTER].weight
    return found


def places(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """Which module computes which tap of the linear `name`: one, or four where it has LoRA."""
    if not isinstance(module, lora.Linear):
        return {name: module}
    return {
        f"{name}.base": module.base_layer,
        f"{name}.lora_ax": module.lora_A[ADAPTER],
        f"{name}.lora_bax": module.lora_B[ADAPTER],
        name: module,
    }


class GivenDropout(nn.Module):
    """x keep / (1 - dropout), in the place of peft's dropout, which draws its own mask."""

    def __init__(self, keep_TI: torch.Tensor, dropout: float) -> None:
        super().__init__()
        self.keep, self.dropout = keep_TI, dropout

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        """[T, I], exactly 0 where `keep` is False."""
        return x_TI.masked_fill(~self.keep, 0.0) / (1 - self.dropout)


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
    return None if keep_TI is None else GivenDropout(keep_TI, dropout)


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
