"""LoRA by peft: its own modules do the arithmetic, y = W x + s B (A x) (arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from contract.worker.plan import Lora

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
