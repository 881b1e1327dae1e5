"""The operations that this stack answers (contract/worker/operations.py): each one a call into the file that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from contract import reading
from contract.model.layouts.rope import RopeScaling
from contract.worker.stack import Attributes
from stacks.torch_qlora import activation, attention, attributes, elementary, embedding, linear, loss, nf4, norm, optim, rope
from stacks.torch_qlora.attributes import DTYPES

IGNORE_INDEX = -100
"""torch's own default for labels that carry no loss."""

TorchTensors = Mapping[str, torch.Tensor]
Answer = dict[str, torch.Tensor]
Compute = Callable[[Attributes, TorchTensors], Answer]


def _matmul(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": linear.matmul(tensors["a"], tensors["b"])}


def _linear(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": linear.linear(tensors["x"], tensors["weight"], tensors.get("bias"))}


def _cross_entropy(attrs: Attributes, tensors: TorchTensors) -> Answer:
    reduction, ignore_index = attrs.get("reduction", "mean"), attributes.label("cross_entropy", attrs, "ignore_index", IGNORE_INDEX)
    return {"loss": loss.cross_entropy(tensors["logits"], tensors["labels"], reduction=reduction, ignore_index=ignore_index)}


def _elementary(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": elementary.elementary(str(attrs.get("function")), tensors["x"])}


def _embedding(attrs: Attributes, tensors: TorchTensors) -> Answer:
    embedding.require_in_vocabulary(tensors["ids"], vocabulary=tensors["weight"].shape[0])
    return {"y": embedding.embedding(tensors["ids"], tensors["weight"])}


def _rms_norm(attrs: Attributes, tensors: TorchTensors) -> Answer:
    eps = attributes.number("rms_norm", attrs, "eps", least=0, included=False)
    return {"y": norm.rms_norm(tensors["x"], tensors["weight"], eps=eps)}


def _layer_norm(attrs: Attributes, tensors: TorchTensors) -> Answer:
    eps = attributes.number("layer_norm", attrs, "eps", least=0, included=False)
    return {"y": norm.layer_norm(tensors["x"], tensors["weight"], tensors["bias"], eps=eps)}


def _rope_tables(attrs: Attributes, tensors: TorchTensors) -> Answer:
    dtype = DTYPES[str(attrs.get("dtype", "float32"))]
    cos_TE, sin_TE = _tables("rope_tables", attrs, tensors["positions"], head_dim=int(attrs["head_dim"]), dtype=dtype)
    return {"cos": cos_TE, "sin": sin_TE}


def _rope(attrs: Attributes, tensors: TorchTensors) -> Answer:
    x_BHTE = tensors["x"]
    cos_BTE, sin_BTE = _tables("rope", attrs, tensors["positions"], head_dim=x_BHTE.shape[-1], dtype=x_BHTE.dtype)
    return {"y": rope.rotate(x_BHTE, cos_BTE.unsqueeze(1), sin_BTE.unsqueeze(1))}


def _tables(op: str, attrs: Attributes, positions: torch.Tensor, *, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin by an operation's attributes."""
    theta, given = attributes.number(op, attrs, "theta", least=0, included=False), attrs.get("scaling")
    scaling = None if given is None else reading.validated(RopeScaling, given, f"{op}: scaling")
    rope.require_positions(op, positions)
    return rope.tables(positions, rope.frequencies(head_dim, theta, scaling), dtype=dtype, device=positions.device)


def _softmax(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": attention.softmax(tensors["x"])}


def _attention(attrs: Attributes, tensors: TorchTensors) -> Answer:
    window, tokens = attributes.window("attention", attrs), tensors["q"].shape[2]
    within = None if window is None else min(window, tokens)  # torch counts diagonals in int64
    return {"context": attention.attention(tensors["q"], tensors["k"], tensors["v"], window=within, valid_BT=tensors.get("valid"))}


def _silu(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": activation.silu(tensors["x"])}


def _gelu(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": activation.gelu(tensors["x"], approximate=str(attrs.get("approximate")))}


def _swiglu(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": activation.swiglu(tensors["gate"], tensors["up"])}


def _lora_linear(attrs: Attributes, tensors: TorchTensors) -> Answer:
    # Imported here: peft brings transformers, seconds that a worker without LoRA need not wait.
    from stacks.torch_qlora import lora

    alpha = attributes.number("lora_linear", attrs, "alpha", least=0, included=False)
    dropout = attributes.number("lora_linear", {"dropout": 0, **attrs}, "dropout", least=0, below=1)
    y_TO = lora.lora_linear(
        tensors["x"], tensors["weight"], tensors.get("bias"), tensors["lora_a"], tensors["lora_b"],
        alpha=alpha, rslora=attributes.flag("lora_linear", attrs, "rslora"),
        given_dropout=lora.given_dropout(tensors.get("keep"), dropout),
    )  # fmt: skip
    return {"y": y_TO}


def _clip_gradients(attrs: Attributes, tensors: TorchTensors) -> Answer:
    max_norm = attributes.number("clip_gradients", attrs, "max_norm", least=0, included=False)
    total, (a, b) = optim.clip_gradients([tensors["a"], tensors["b"]], max_norm)
    return {"norm": total, "a_clipped": a, "b_clipped": b}


def _adamw_step(attrs: Attributes, tensors: TorchTensors) -> Answer:
    settings = _adamw_settings("adamw_step", attrs)
    before = optim.Moments(m_N=tensors["m"], v_N=tensors["v"], step=int(tensors["step"]))
    weight_N, after = optim.adamw_step(tensors["weight"], tensors["gradient"], before, settings)
    return {"weight_next": weight_N, "m_next": after.m_N, "v_next": after.v_N, "step_next": torch.tensor(after.step)}


def _adamw_8bit_step(attrs: Attributes, tensors: TorchTensors) -> Answer:
    # Imported here: bitsandbytes' optimisers are seconds that a worker without them need not wait.
    from stacks.torch_qlora import optim_8bit

    settings = _adamw_settings("adamw_8bit_step", attrs)
    before = optim.Moments(m_N=tensors["m"], v_N=tensors["v"], step=int(tensors["step"]))
    weight_N, after = optim_8bit.adamw_step(tensors["weight"], tensors["gradient"], before, settings)
    return {"weight_next": weight_N, "m_next": after.m_N, "v_next": after.v_N, "step_next": torch.tensor(after.step)}


def _adamw_settings(op: str, attrs: Attributes) -> optim.AdamWSettings:
    return optim.AdamWSettings(
        lr=attributes.number(op, attrs, "lr", least=0),
        beta1=attributes.number(op, attrs, "beta1", least=0, below=1),
        beta2=attributes.number(op, attrs, "beta2", least=0, below=1),
        eps=attributes.number(op, attrs, "eps", least=0, included=False),
        weight_decay=attributes.number(op, attrs, "weight_decay", least=0),
    )


def _nf4_quantize(attrs: Attributes, tensors: TorchTensors) -> Answer:
    quantized = nf4.quantize(tensors["weight"], int(attrs["block_size"]))
    codes = nf4.unpack(quantized.packed, tensors["weight"].numel())
    return {"codes": codes, "packed": quantized.packed, "absmax": quantized.absmax}


def _nf4_offset(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"offset": nf4.offset(tensors["absmax"])}


def _nf4_nest(attrs: Attributes, tensors: TorchTensors) -> Answer:
    codes, nested_absmax = nf4.nest(tensors["absmax"], tensors["offset"])
    return {"absmax_codes": codes, "nested_absmax": nested_absmax}


def _nf4_unnest(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"absmax": nf4.unnest(tensors["absmax_codes"], tensors["nested_absmax"], tensors["offset"])}


def _nf4_dequantize(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"weight": nf4.dequantize(_quantized(tensors), **_shape(attrs))}


def _nf4_linear(attrs: Attributes, tensors: TorchTensors) -> Answer:
    return {"y": nf4.linear(tensors["x"], _quantized(tensors), tensors.get("bias"), **_shape(attrs))}


def _quantized(tensors: TorchTensors) -> nf4.Quantized:
    return nf4.Quantized(packed=tensors["packed"], absmax=tensors["absmax"])


def _shape(attrs: Attributes) -> dict[str, int]:
    return {name: int(attrs[name]) for name in ("block_size", "out_features", "in_features")}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How an operation is computed, and in which dtypes."""

    compute: Compute
    dtypes: tuple[str, ...] = ("float32",)
    why_not_others: str = ""


_BOTH = ("float32", "float64")
ENTRIES: Mapping[str, Entry] = {
    "matmul": Entry(compute=_matmul, dtypes=_BOTH),
    "linear": Entry(compute=_linear, dtypes=_BOTH),
    "cross_entropy": Entry(compute=_cross_entropy, dtypes=_BOTH),
    "elementary": Entry(compute=_elementary, dtypes=_BOTH),
    "embedding": Entry(compute=_embedding, dtypes=_BOTH),
    "rms_norm": Entry(compute=_rms_norm, dtypes=_BOTH),
    "layer_norm": Entry(compute=_layer_norm, dtypes=_BOTH),
    "rope_tables": Entry(compute=_rope_tables, dtypes=_BOTH),
    "rope": Entry(compute=_rope, dtypes=_BOTH),
    "softmax": Entry(compute=_softmax, dtypes=_BOTH),
    "attention": Entry(compute=_attention, dtypes=_BOTH),
    "silu": Entry(compute=_silu, dtypes=_BOTH),
    "gelu": Entry(compute=_gelu, dtypes=_BOTH),
    "swiglu": Entry(compute=_swiglu, dtypes=_BOTH),
    "lora_linear": Entry(compute=_lora_linear, dtypes=_BOTH),
    "clip_gradients": Entry(compute=_clip_gradients, dtypes=_BOTH),
    "adamw_step": Entry(compute=_adamw_step, dtypes=_BOTH),
    "adamw_8bit_step": Entry(compute=_adamw_8bit_step),
    "nf4_quantize": Entry(compute=_nf4_quantize),
    "nf4_offset": Entry(compute=_nf4_offset),
    "nf4_nest": Entry(compute=_nf4_nest),
    "nf4_unnest": Entry(compute=_nf4_unnest),
    "nf4_dequantize": Entry(compute=_nf4_dequantize),
    "nf4_linear": Entry(
        compute=_nf4_linear,
        why_not_others=" (bitsandbytes returns uninitialised memory for float64; use linear on the dequantised weight, widened)",
    ),
}
