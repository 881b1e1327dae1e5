"""PEFT's adapter format: adapter_model.safetensors and adapter_config.json, as PEFT 0.21 reads and writes them.

    base_model.model.{module}.lora_A.weight [rank, in]    base_model.model.{module}.lora_B.weight [out, rank]

A module is a key of the checkpoint without `.weight`. The format knows nothing of the base's quantisation, of the graph, or of our
names for linears: what of an adapter it can't hold, `write` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.adapter_fields import at, require_names
from contract.artifacts.fused import Block, fuse
from contract.artifacts.names import logical_of, module_of, order_of
from contract.artifacts.peft_config import CONFIG, PeftConfig, of_module, read_config, require_targets, write_config
from contract.artifacts.safetensors_writer import write_matrices
from contract.artifacts.tensors import read_matrices
from contract.errors import ContractError, brief

TENSORS = "adapter_model.safetensors"

_NAME = re.compile(r"base_model\.model\.([A-Za-z0-9_.-]{1,512})\.lora_([AB])\.weight")
_REMEDY = "export it as plain LoRA on linears"


def read(folder: Path) -> tuple[Adapter, tuple[str, ...]]:
    """Reads a PEFT adapter; answers it, and what of its configuration says nothing to us and is left out.

    Raises:
        ContractError, ContractErrors: a file is missing or damaged; anything but plain LoRA on linears; a tensor that is missing,
            unknown, not F32, BF16 or F16, not of its rank, or not finite.
    """
    config = read_config(folder / CONFIG)
    path = folder / TENSORS
    matrices = read_matrices(path, dtypes=("F32", "BF16", "F16"))
    modules = _modules(path, matrices)
    require_names({f"base_model.model.{module}.lora_{half}.weight" for module in modules for half in "AB"}, matrices, path)
    require_targets(folder / CONFIG, config, modules)
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    places: dict[str, Place] = {}
    alphas: dict[str, float] = {}
    for module in modules:
        a, b = (matrices[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        rank = of_module(config.rank_pattern, module, config.r)
        if a.shape[0] != rank:
            raise ContractError(
                f"{path}: {module}.lora_A", got=f"shape {list(a.shape)}", allowed=f"{rank} rows, the rank in {CONFIG}",
                remedy="take the two files of one adapter",
            )  # fmt: skip
        logical = logical_of(module)
        if logical in pairs:
            raise ContractError(f"{path}: {module}", got=f"a second {logical}", allowed="each linear once", remedy=_REMEDY)
        pairs[logical], places[logical] = (a, b), Place(key=f"{module}.weight")
        alphas[logical] = of_module(config.alpha_pattern, module, config.lora_alpha)
    with at(path):
        adapter = Adapter(
            matrices=pairs, places=places, layer_order=order_of(pairs), rank=config.r, alpha=config.lora_alpha, alpha_pattern=alphas,
            rslora=config.use_rslora, method="lora", base_model=config.base_model_name_or_path,
        )  # fmt: skip
    left_out = ("target_modules is a pattern: the tensors say which linears have LoRA",) if isinstance(config.target_modules, str) else ()
    return adapter, left_out


def _modules(path: Path, names: Iterable[str]) -> list[str]:
    modules = set()
    for name in names:
        match = _NAME.fullmatch(name)
        if not match:
            allowed = "base_model.model.{module}.lora_A.weight and .lora_B.weight"
            raise ContractError(f"{path}: {brief(name)}", got="another tensor", allowed=allowed, remedy=_remedy_for(name))
        modules.add(match[1])
    return sorted(modules)


def _remedy_for(name: str) -> str:
    """PEFT saves the base's own embedding and head along where one of them has LoRA, unless it's told not to."""
    if re.fullmatch(r"base_model\.model\.(\w+\.)*(lm_head|embed_tokens|wte)\.(base_layer\.)?weight", name):
        return "save it again with PEFT's save_pretrained(..., save_embedding_layers=False)"
    return _REMEDY


def write(folder: Path, adapter: Adapter) -> tuple[str, ...]:
    """Writes a PEFT adapter into a folder; answers what the format can't hold.

    The parts of GPT-2's fused c_attn become one LoRA of their ranks' sum on it, with the same product (contract/artifacts/fused.py).
    Each file whole or not at all, the same bytes for the same adapter.

    Raises:
        ContractError: a linear that PEFT has no module for, two on one weight, parts that can't be put together.
    """
    written = _assembled(adapter)
    tensors = {}
    for module, block in written.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = block.a
        tensors[f"base_model.model.{module}.lora_B.weight"] = block.b
    config = PeftConfig(
        peft_type="LORA",
        base_model_name_or_path=adapter.base_model,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        rank_pattern={module: block.rank for module, block in written.items() if block.rank != adapter.rank},
        alpha_pattern={module: block.alpha for module, block in written.items() if block.alpha != adapter.alpha},
        use_rslora=adapter.rslora,
        fan_in_fan_out=any(place.transposed for place in adapter.places.values()),
        target_modules=tuple(written),
    )
    for module, block in written.items():
        assert of_module(config.rank_pattern, module, config.r) == block.rank
        assert of_module(config.alpha_pattern, module, config.lora_alpha) == block.alpha
    write_matrices(folder / TENSORS, tensors)
    write_config(folder / CONFIG, config)
    return _lost(adapter)


def _assembled(adapter: Adapter) -> dict[str, Block]:
    """Each module's one pair of matrices, by the modules' names in order."""
    by_module: dict[str, list[str]] = {}
    for logical in adapter.layer_order:
        by_module.setdefault(module_of(logical, adapter.places[logical].key, adapter.embed_key), []).append(logical)
    blocks = {}
    for module in sorted(by_module):
        parts = by_module[module]
        if [adapter.places[part].offset for part in parts] == [None]:
            a, b = adapter.matrices[parts[0]]
            blocks[module] = Block(a=a, b=b, alpha=adapter.alpha_of(parts[0]))
        else:
            blocks[module] = fuse(adapter, parts)
    return blocks


@dataclass(frozen=True)
class _Fact:
    name: str
    value: object
    silent: object


def _lost(adapter: Adapter) -> tuple[str, ...]:
    """What of an adapter PEFT's format has no field for, and what reading it back would make up otherwise."""
    names = {logical: logical_of(module_of(logical, place.key, adapter.embed_key)) for logical, place in adapter.places.items()}
    facts = [
        _Fact("adapter_method", adapter.method, "lora"),
        _Fact("quant", adapter.quant and adapter.quant.model_dump(exclude_none=True), None),
        _Fact("embed_key", adapter.embed_key, None),
        _Fact("vocab", adapter.vocab, None),
        _Fact("d_model", adapter.d_model, None),
        _Fact("graph", adapter.graph, None),
        _Fact("allow_placeholder_attention_merge", adapter.allow_placeholder_attention_merge, False),
        _Fact("adapter_tag", adapter.adapter_tag, None),
        _Fact("notes", adapter.notes, ()),
    ]
    lost = [f"{fact.name}: {fact.value}" for fact in facts if fact.value != fact.silent]
    renamed = {logical: name for logical, name in names.items() if logical != name}
    if renamed:
        first = next(iter(renamed))
        lost.append(f"names of linears: {len(renamed)}, such as {first}, which becomes {renamed[first]}")
    if adapter.layer_order != order_of(adapter.matrices):
        lost.append("layer_order: the linears come back in the order of their layers")
    parts = sum(place.offset is not None for place in adapter.places.values())
    if parts:
        lost.append(f"base_offset: {parts} parts of fused weights are one LoRA for each whole weight")
    return tuple(lost)
