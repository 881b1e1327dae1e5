"""Attributes of a request, held against what they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from contract.worker.stack import Attributes

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


def number(op: str, attrs: Attributes, name: str, *, least: float, included: bool = True, below: float = math.inf) -> float:
    """A finite number of at least `least` (above it where it is not included) and below `below`.

    Raises:
        ValueError: it is missing, no number, or outside.
    """
    value = attrs.get(name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below and (included or value != least)
    if not fits:
        border = f"{'of at least' if included else 'above'} {least:g}" + (f" and below {below:g}" if below < math.inf else "")
        raise ValueError(f"{op}: {name} is {value!r}; allowed: a finite number {border}; set the attribute {name}")
    return float(str(value))


def window(op: str, attrs: Attributes) -> int | None:
    """How many tokens a token sees; None where it sees all before it.

    Raises:
        ValueError: no integer of at least 1.
    """
    value = attrs.get("window")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{op}: window is {value!r}; allowed: an integer of at least 1 (a token sees itself), or null; "
            "leave it out where every token sees all before it"
        )
    return value


def flag(op: str, attrs: Attributes, name: str) -> bool:
    """A switch; False where it is missing.

    Raises:
        ValueError: neither true nor false.
    """
    value = attrs.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{op}: {name} is {value!r}; allowed: true, false; set the attribute {name} to one of them")
    return value
