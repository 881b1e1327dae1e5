"""What adapter files mean, and what a merge gives: read and computed from the formats' description alone (docs/artifacts.md).

    y = W x + s B (A x)        s = alpha / rank, or alpha / sqrt(rank) with rslora                 arXiv:2106.09685, 2312.03732
    W'_ij = float32(float64(W_ij) + s (B_i0 A_0j + B_i1 A_1j + ...))      in float64, ranks ascending from +0, then the product with s

Shape suffixes: R rank, I in_features, O out_features.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load

from contract.worker.plan import Lora

_PEFTS = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_BLOCK = re.compile(r"(?:model\.layers|transformer\.h)\.([0-9]+)\.(?:self_attn|attn|mlp)\.(\w+)")
_GPT2 = {"attn.c_attn": ("q_proj", "k_proj", "v_proj"), "attn.c_proj": ("o_proj",), "mlp.c_fc": ("up_proj",), "mlp.c_proj": ("down_proj",)}


@dataclass(frozen=True, kw_only=True)
class Linear:
    """What an adapter adds to a linear: s, and A [R, I] and B [O, R]."""

    scale: float
    a_RI: np.ndarray
    b_OR: np.ndarray


Meaning = Mapping[str, Linear]
"""By the path of each linear that has LoRA, layers.3.q_proj."""


def drawn(lora: Lora, adapter: Mapping[str, np.ndarray]) -> dict[str, Linear]:
    """An adapter in memory: PATH.lora_a and PATH.lora_b."""
    found = {}
    for path in sorted({name.rpartition(".")[0] for name in adapter}):
        kind = path.rpartition(".")[2]
        alpha = lora.alpha_pattern.get(path, lora.alpha_pattern.get(kind, lora.alpha))
        a_RI, b_OR = adapter[f"{path}.lora_a"], adapter[f"{path}.lora_b"]
        found[path] = Linear(scale=_scale(alpha, len(a_RI), lora.rslora), a_RI=a_RI, b_OR=b_OR)
    return found


def ours(description: bytes, tensors: bytes) -> dict[str, Linear]:
    """v2 and v3, whose linears go by their paths.

    Raises:
        ValueError, KeyError: files that are none.
    """
    fields, matrices = json.loads(description), load(tensors)
    found = {}
    for path in fields["base_key_map"]:
        rank = fields.get("rank_pattern", {}).get(path, fields["rank"])
        alpha = fields.get("alpha_pattern", {}).get(path, fields["alpha"])
        scale = _scale(alpha, rank, fields.get("rslora", False))
        found[path] = Linear(scale=scale, a_RI=matrices.pop(f"{path}.lora_a"), b_OR=matrices.pop(f"{path}.lora_b"))
    if matrices:
        raise ValueError(f"the description names no {min(matrices)}, which lies beside it")
    return found


def pefts(config: bytes, tensors: bytes) -> dict[str, Linear]:
    """PEFT's format: one LoRA on GPT-2's fused c_attn is one on each of its parts, of the ranks that reach it.

    Raises:
        ValueError, KeyError: files that are none; a GPT-2's without fan_in_fan_out.
    """
    fields, matrices = json.loads(config), load(tensors)
    modules = sorted({match[1] for name in matrices if (match := _PEFTS.fullmatch(name))})
    if 2 * len(modules) != len(matrices):
        raise ValueError(f"{len(matrices)} tensors of {len(modules)} modules; a module has two")
    found: dict[str, Linear] = {}
    for module in modules:
        a_RI, b_OR = (matrices[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        scale = _scale(_of(fields["alpha_pattern"], module, fields["lora_alpha"]), len(a_RI), fields["use_rslora"])
        if _of(fields["rank_pattern"], module, fields["r"]) != len(a_RI):
            raise ValueError(f"{module}: A has {len(a_RI)} rows, which is not its rank")
        found |= _parts(_paths(module, fields), Linear(scale=scale, a_RI=a_RI, b_OR=b_OR))
    return found


def by_part(meaning: Meaning) -> dict[str, Linear]:
    """The same with one LoRA on GPT-2's fused c_attn as one on each of its parts."""
    found: dict[str, Linear] = {}
    for path, linear in meaning.items():
        section, _, own = path.rpartition(".")
        found |= _parts(tuple(f"{section}.{name}" for name in _GPT2["attn.c_attn"]) if own == "c_attn" else (path,), linear)
    return found


def _parts(paths: Sequence[str], linear: Linear) -> dict[str, Linear]:
    """What lies on each of several linears, of the ranks that reach it."""
    if len(paths) == 1:
        return {paths[0]: linear}
    found = {}
    for path, part_OR in zip(paths, np.split(linear.b_OR, len(paths)), strict=True):
        reaches = part_OR.any(axis=0)
        if reaches.any():
            found[path] = Linear(scale=linear.scale, a_RI=linear.a_RI[reaches], b_OR=part_OR[:, reaches])
    return found


def merged(weight_OI: np.ndarray, lora: Linear) -> np.ndarray:
    """W', float32; no BLAS, and no fused multiply-add."""
    delta_OI = np.zeros(weight_OI.shape)
    for b_O, a_I in zip(lora.b_OR.T.astype(np.float64), lora.a_RI.astype(np.float64), strict=True):
        product_OI = b_O[:, None] * a_I
        delta_OI = delta_OI + product_OI
    scaled_OI = delta_OI * lora.scale
    return (weight_OI.astype(np.float64) + scaled_OI).astype(np.float32)


def _scale(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if rslora else rank)


def _of(pattern: Mapping[str, Any], module: str, usual: Any) -> Any:
    """A module's own value, as PEFT looks it up: a key is a module's name or its end."""
    return next((value for key, value in pattern.items() if module == key or module.endswith(f".{key}")), usual)


def _paths(module: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    match = _BLOCK.fullmatch(module)
    if match is None:
        raise ValueError(f"{module} is no linear of a block")
    if not module.startswith("transformer."):
        return (f"layers.{match[1]}.{match[2]}",)
    if not fields["fan_in_fan_out"]:
        raise ValueError("fan_in_fan_out is false, and GPT-2's weights are [in, out]")
    return tuple(f"layers.{match[1]}.{name}" for name in _GPT2[module.split(".", 3)[3]])
