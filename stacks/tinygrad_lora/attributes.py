"""Attributes of a request, read strictly: what was got, what is allowed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import ValidationError

from contract.model.layouts.rope import RopeScaling
from contract.worker.stack import Attributes


def number(attrs: Attributes, name: str, allowed: str, holds: Callable[[float], bool], *, default: float | None = None) -> float:
    """A number that the request's dtype holds and that obeys `holds`, which `allowed` says in words.

    Raises:
        ValueError: it is something else, or missing without a default.
    """
    value, dtype = attrs.get(name, default), str(attrs.get("dtype", "float32"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= float(np.finfo(dtype).max) or not holds(value):
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}, finite in {dtype}")
    return float(value)


def positive(attrs: Attributes, name: str) -> float:
    """A number over 0. Raises: as `number`."""
    return number(attrs, name, "a number over 0", lambda value: value > 0)


def not_negative(attrs: Attributes, name: str) -> float:
    """A number of at least 0. Raises: as `number`."""
    return number(attrs, name, "a number of at least 0", lambda value: value >= 0)


def fraction(attrs: Attributes, name: str, *, default: float | None = None) -> float:
    """A number of at least 0 and under 1. Raises: as `number`."""
    return number(attrs, name, "a number of at least 0 and under 1", lambda value: 0 <= value < 1, default=default)


def window(attrs: Attributes) -> int | None:
    """The attribute `window`: how many tokens a token sees, itself among them; None for all.

    Raises:
        ValueError: no integer of at least 1, and not null.
    """
    value = attrs.get("window")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"window is {value!r}; allowed: an integer of at least 1, or null for no window")
    return value


def label(attrs: Attributes, name: str, default: int) -> int:
    """A label, as int64 has it.

    Raises:
        ValueError: it is something else.
    """
    value = attrs.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value!r}; allowed: an integer of int64, or nothing for {default}")
    return value


def flag(attrs: Attributes, name: str) -> bool:
    """True or false; false where it is missing.

    Raises:
        ValueError: it is something else.
    """
    value = attrs.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; allowed: true, false")
    return value


def choice(attrs: Attributes, name: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words; the first where it is missing.

    Raises:
        ValueError: it is something else.
    """
    value = attrs.get(name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return str(value)


def rope_scaling(attrs: Attributes) -> RopeScaling | None:
    """The attribute `scaling`; None where it is null or missing.

    Raises:
        ValueError: it is no scaling that contract/model/layouts/rope.py has.
    """
    value = attrs.get("scaling")
    if value is None:
        return None
    try:
        return RopeScaling.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["scaling", *map(str, first["loc"])])
        raise ValueError(f"{place}: {first['msg']}; got {value!r}, allowed: null, linear or llama3 with its parameters") from None
