"""Attributes of a request, held against what they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from contract.worker.stack import Attributes

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def number(op: str, attrs: Attributes, name: str, *, least: float, included: bool = True, below: float = math.inf) -> float:
    """A number that the request's dtype holds, of at least `least` (above it where it is not included) and below `below`.

    Raises:
        ValueError: it is missing, no number, or outside.
    """
    value, dtype = attrs.get(name), str(attrs.get("dtype", "float32"))
    largest = torch.finfo(DTYPES[dtype]).max
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= largest and value < below
    if not fits or (value == least and not included):
        border = f"{'of at least' if included else 'above'} {least:g}" + (f" and below {below:g}" if below < math.inf else "")
        raise ValueError(
            f"{op}: {name} is {value!r}; allowed: a finite number {border}; set the attribute {name} to one that {dtype} holds"
        )
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


def label(op: str, attrs: Attributes, name: str, default: int) -> int:
    """A label, as int64 has it.

    Raises:
        ValueError: no such integer.
    """
    value = attrs.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise ValueError(
            f"{op}: {name} is {value!r}; allowed: an integer of int64; set the attribute {name}, or leave it out for {default}"
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
