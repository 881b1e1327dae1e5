"""PEFT's adapter_config.json: each field is honoured, known to change nothing, or refused by name.

The fields are those of `LoraConfig` in PEFT 0.21 (peft/tuners/lora/config.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from contract.artifacts.adapter_fields import Alpha, Rank, whole
from contract.artifacts.record import Line, Record, to_json
from contract.errors import ContractError, brief
from contract.reading import json_file, validated
from contract.worker.files import replacing

CONFIG = "adapter_config.json"

HONOURED = (
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "target_modules",
)  # fmt: skip

NO_EFFECT = frozenset(
    {
        # who wrote it, for what
        "auto_mapping", "inference_mode", "peft_version", "revision", "runtime_config", "task_type",
        # which linears were chosen: the tensors say which they are
        "exclude_modules", "layers_pattern", "layers_to_transform",
        # how A and B began, where that leaves the base as it is; how they were trained
        "corda_config", "eva_config", "lora_dropout", "lora_ga_config", "loftq_config", "velora_config",
        # parts of what ONLY switches off
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""Fields that say nothing of the trained adapter's function."""

ONLY: Mapping[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none",),
    "ensure_weight_tying": (False,),
    # The others change the base's own weights (pissa, olora, loftq, corda, lora_ga), or may do so in a later version.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "lora_bias": (False,),
    "megatron_config": (None,),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_bdlora": (None,),
    "use_dora": (False,),
    "use_qalora": (False,),
}
"""Fields that change the function, and the values with which they don't."""

_REMEDY = "export it as plain LoRA"
# PEFT takes a pattern's key for a regular expression; one that names modules has nothing in it that could take long.
_Pattern = Annotated[str, Field(max_length=512, pattern=r"^\^?(?:[A-Za-z0-9_.\-]|\\\.)+$")]
_Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,512}$")]


class PeftConfig(Record):
    """The fields that are honoured, named as PEFT has them."""

    peft_type: Literal["LORA"]
    base_model_name_or_path: Line | None = None
    r: Rank
    lora_alpha: Alpha
    rank_pattern: dict[_Pattern, Rank] = Field(default_factory=dict, max_length=100_000)
    alpha_pattern: dict[_Pattern, Alpha] = Field(default_factory=dict, max_length=100_000)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    target_modules: Annotated[tuple[_Module, ...], Field(strict=False, min_length=1, max_length=100_000)] | Line


def read_config(path: Path) -> PeftConfig:
    """Reads adapter_config.json.

    Raises:
        ContractError, ContractErrors: it's not there or damaged; another kind of adapter than plain LoRA; a field that changes the
            function and is not honoured, or that is not known.
    """
    fields = json_file(path, remedy="give a PEFT adapter's folder")
    for name, value in fields.items():
        if name in ONLY and not any(value is allowed or (type(value) is type(allowed) and value == allowed) for allowed in ONLY[name]):
            allowed = " or ".join(map(repr, ONLY[name]))
            raise ContractError(f"{path}: {name}", got=f"{brief(value)}, which is not honoured", allowed=allowed, remedy=_REMEDY)
        if name not in HONOURED and name not in ONLY and name not in NO_EFFECT:
            raise ContractError(
                f"{path}: {brief(name)}", got="a field that PEFT 0.21 does not have, and that may change the function",
                allowed=", ".join(HONOURED), remedy="write the adapter with PEFT 0.21, or remove the field if it changes nothing",
            )  # fmt: skip
    honoured = {name: value for name, value in fields.items() if name in HONOURED and value is not None}
    return validated(PeftConfig, honoured, str(path), remedy=_REMEDY)


def write_config(path: Path, config: PeftConfig) -> None:
    """Writes adapter_config.json; PEFT takes its default for every field that is left out."""
    value = config.model_dump(mode="json") | {"bias": "none", "inference_mode": True, "task_type": "CAUSAL_LM"}
    value["lora_alpha"] = whole(config.lora_alpha)
    value["alpha_pattern"] = {module: whole(alpha) for module, alpha in config.alpha_pattern.items()}
    content = to_json(value)
    with replacing(path) as file:
        file.write(content)


def of_module(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    """A module's own rank or alpha: the first pattern that fits (peft/utils/other.py, get_pattern_key), else the usual one."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def require_targets(path: Path, config: PeftConfig, modules: Collection[str]) -> None:
    """Holds the tensors' modules against target_modules, by PEFT's rule: the whole name, or its end after a dot.

    PEFT leaves the tensors of a module that is not targeted unused, and a targeted module without tensors as it began, and only warns.

    Raises:
        ContractError: a module that is not targeted, or a target that no tensor is of.
    """
    if isinstance(config.target_modules, str):
        return
    targets, used = set(config.target_modules), set()
    for module in modules:
        parts = module.split(".")
        fitting = {".".join(parts[start:]) for start in range(len(parts))} & targets
        if not fitting:
            raise ContractError(
                f"{path}: target_modules", got=f"none that {module} goes by", allowed="each module that has tensors",
                remedy="take the two files of one adapter",
            )  # fmt: skip
        used |= fitting
    if targets - used:
        raise ContractError(
            f"{path}: target_modules", got=f"{min(targets - used)}, of which there is no tensor", allowed="modules that have tensors",
            remedy="take the two files of one adapter",
        )  # fmt: skip
