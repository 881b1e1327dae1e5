"""The peer of benchmarks/train.py: transformers, PEFT and bitsandbytes, in a plain loop of PyTorch's AdamW.

It loads the same weights and starts from the same adapter, takes the same ids and labels, and has the settings in which it was fastest
here: no attention mask (no row is padded), no gradient checkpointing, no cache, scaled_dot_product_attention. In bfloat16 the base is
held in bfloat16, the adapter in float32, and products run under autocast, as transformers' Trainer does it with bf16=True.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from contract.run.spec import FineTuneContract


class Peer:
    """Optimiser steps of the contract's run, one micro-batch each.

    Args:
        data: ids.N and labels.N, int64 [B, T], of step N; and the initial adapter, layers.N.LINEAR.lora_a and .lora_b.
    """

    def __init__(self, contract: FineTuneContract, model: Path, data: Path) -> None:
        self._contract, self._device = contract, contract.exec.device.lower()
        self._tensors = load_file(data, device=self._device)
        self._steps = sum(name.startswith("ids.") for name in self._tensors)
        self._model = self._with_lora(self._base(model))
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=0.0, weight_decay=contract.exec.weight_decay)

    def step(self, number: int, learning_rate: float) -> float:
        """The loss before the update: the mean over the supervised tokens."""
        at = number % self._steps
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with self._autocast():
            loss = self._model(input_ids=self._tensors[f"ids.{at}"], labels=self._tensors[f"labels.{at}"], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._contract.exec.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._contract.exec.compute_dtype == "bfloat16" else torch.float32

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device, torch.bfloat16) if self._dtype == torch.bfloat16 else nullcontext()

    def _base(self, model: Path) -> Any:
        quant = self._contract.quant
        held = None
        if quant.base == "nf4":
            held = {
                "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": quant.double_quant, "bnb_4bit_compute_dtype": self._contract.exec.compute_dtype,
            }  # fmt: skip
        placed = self._device if self._device == "cuda" else None
        return AutoModelForCausalLM.from_pretrained(
            model, dtype=self._dtype, quantization_config=held, attn_implementation="sdpa", device_map=placed
        )

    def _with_lora(self, base: Any) -> Any:
        adapter = self._contract.adapter
        linears = sorted({name.split(".")[2] for name in self._tensors if name.endswith(".lora_a")})
        config = LoraConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), lora_dropout=0.0, target_modules=linears, bias="none")
        model = get_peft_model(base, config)
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                layer, _, linear = name.split(".layers.")[1].split(".")
                module.lora_A["default"].weight.data.copy_(self._tensors[f"layers.{layer}.{linear}.lora_a"])
                module.lora_B["default"].weight.data.copy_(self._tensors[f"layers.{layer}.{linear}.lora_b"])
        model.train()
        return model
