"""Presets: contracts in part, as data files beside this one; what they leave out is the default."""

from __future__ import annotations

from pathlib import Path

from contract.errors import ContractError, brief
from contract.run.layer import Layer, layer_of
from contract.run.strict_yaml import parse

FOLDER = Path(__file__).parent
NAMES = ("smoke", "cpu", "gpu_16g", "gpu_80g", "research", "mobile_edge")


def preset_text(name: str) -> str:
    """A preset's file.

    Raises:
        ContractError: there is no such preset.
    """
    if name not in NAMES:
        raise ContractError("--preset", got=brief(name), allowed=", ".join(NAMES), remedy="name one of these")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def preset_layer(name: str) -> Layer:
    """A preset's fields.

    Raises:
        ContractError: there is no such preset.
    """
    source = f"preset {name}"
    return layer_of(source, *parse(preset_text(name), source))
