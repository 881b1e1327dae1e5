"""One source of a contract's fields: a preset, a file, a flag; and several of them laid over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from contract.errors import ContractError, brief

Location = tuple[str | int, ...]
"""Where a value stands: keys of mappings, numbers of list entries."""

MAX_DEPTH = 32
"""No contract is deeper than four; what is deeper than this is refused before anything recurses into it."""

MAX_FAULTS = 100
"""A hostile file can hold a fault in each of its million bytes; nobody reads more than these."""

Faults = dict[Location, ContractError]


def dotted(location: Location) -> str:
    """A location as a person writes it; a part that is no plain name is quoted."""
    return ".".join(str(part) if isinstance(part, int) or (part.isidentifier() and len(part) < 80) else brief(part) for part in location)


def spot(source: str, location: Location = (), line: int | None = None) -> str:
    """A place for a ContractError: source, line, field."""
    where = source if line is None else f"{source}:{line}"
    return f"{where}: {dotted(location)}" if location else where


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The fields that one source gives.

    source: a file's path, `preset NAME` or `--set`. lines: counted from 1, where they are known. faults: what was wrong with single
    values; the rest of the source could still be read.
    """

    source: str
    values: Mapping[str, Any]
    lines: Mapping[Location, int] = field(default_factory=dict)
    faults: Faults = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """Where a value stands, or what would hold it."""
        known = next((location[:n] for n in range(len(location), 0, -1) if location[:n] in self.lines), None)
        return spot(self.source, location, None if known is None else self.lines[known])


def layer_of(source: str, value: object, lines: Mapping[Location, int], faults: Faults) -> Layer:
    """A layer of what a parser gave; values that JSON can't hold become faults.

    Raises:
        ContractError: it is no mapping, or nested too deep.
    """
    if value is None and () not in faults:
        value = {}
    if not isinstance(value, dict):
        raise ContractError(
            source, got=brief(value), allowed="a mapping of the contract's fields", remedy="finetune init writes a file to start from"
        )
    layer = Layer(source=source, values=value, lines=lines, faults=dict(faults))
    waiting: list[tuple[Location, Any]] = [((), value)]
    while waiting and len(layer.faults) < MAX_FAULTS:
        above, container = waiting.pop()
        if len(above) >= MAX_DEPTH:
            raise ContractError(layer.place(above[:3]), got="values nested too deep", allowed=f"{MAX_DEPTH} levels", remedy="correct it")
        for key, inner in list(container.items() if isinstance(container, dict) else enumerate(container)):
            location = (*above, key)
            if isinstance(inner, dict | list):
                waiting.append((location, inner))
            if wrong := _not_json(inner) or _not_json(key):
                got, allowed = wrong
                fault = ContractError(layer.place(location), got=got, allowed=allowed, remedy="correct it")
                layer.faults.setdefault(location, fault)
                container[key] = None  # nothing further has to cope with it: Python can't even show an integer of 4,301 digits
    return layer


def _not_json(value: object) -> tuple[str, str] | None:
    """What is wrong with a value that JSON, or UTF-8, can't hold as it is: got and allowed."""
    if isinstance(value, str):
        if "\0" in value:
            return brief(value), "text without NUL"
        return None if value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value) else (brief(value), "Unicode text")
    if value is None or isinstance(value, bool | dict | list):
        return None
    if isinstance(value, int):
        return (f"an integer of {value.bit_length()} bits", "an integer of at most 64") if value.bit_length() > 64 else None
    if isinstance(value, float):
        return None if math.isfinite(value) else (str(value), "a finite number")
    return brief(str(value)), "no date or time; a text in quotes"


def laid_over(layers: Sequence[Layer], model: type[BaseModel]) -> tuple[dict[str, Any], dict[Location, Layer]]:
    """The fields of all layers, a later one over an earlier one, and which layer each came from.

    The model's own models are merged field by field; every other value, lists and mappings among them, is replaced whole.
    """
    values: dict[str, Any] = {}
    origins: dict[Location, Layer] = {}
    for layer in layers:
        _lay(layer, layer.values, values, model, (), origins)
    return values, origins


def _lay(
    layer: Layer,
    above: Mapping[str, Any],
    below: dict[str, Any],
    model: type[BaseModel],
    location: Location,
    origins: dict[Location, Layer],
) -> None:
    for key, value in above.items():
        section = section_of(model, key)
        if section is None or not isinstance(value, dict):
            below[key] = value
            origins[(*location, key)] = layer
        elif isinstance(inner := below.setdefault(key, {}), dict):  # else an earlier layer's fault stays, to be reported
            origins.setdefault((*location, key), layer)
            _lay(layer, value, inner, section, (*location, key), origins)


def section_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model that a field holds; None for any other field and for an unknown one."""
    found = model.model_fields.get(key)
    annotation = found.annotation if found else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
