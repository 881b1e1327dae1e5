"""What is wrong with a contract's fields, in words that say where it stands and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from contract.errors import ContractError, brief
from contract.run.layer import MAX_FAULTS, Layer, Location, section_of, spot

TYPES = {
    "int_type": "an integer", "float_type": "a number", "string_type": "text", "bool_type": "true or false", "dict_type": "a mapping",
    "tuple_type": "a list",
}  # fmt: skip
"""pydantic's kinds of faults, where its message speaks of Python."""


def faults_of(
    error: ValidationError, model: type[BaseModel], origins: Mapping[Location, Layer], source: str
) -> Iterator[tuple[Location, ContractError]]:
    """The first MAX_FAULTS faults that pydantic found, each with its location.

    Args:
        origins: which layer a field came from; `source` is named for what no layer has.
    """
    names = dict(_fields(model))
    for fault in error.errors(include_url=False, include_context=False)[:MAX_FAULTS]:
        location: Location = fault["loc"]
        if location[-1:] == ("[key]",) and fault["type"] != "extra_forbidden":  # pydantic's mark for a mapping's key
            location = location[:-1]
        layer = next((origins[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origins), None)
        place = layer.place(location) if layer is not None else spot(source, location)
        yield location, _fault(fault, place, location, names)


def _fields(model: type[BaseModel], at: Location = ()) -> Iterator[tuple[Location, FieldInfo]]:
    """Every field, sections among them, by location."""
    for name, field in model.model_fields.items():
        yield (*at, name), field
        section = section_of(model, name)
        if section is not None:
            yield from _fields(section, (*at, name))


def _fault(fault: Any, place: str, location: Location, names: Mapping[Location, FieldInfo]) -> ContractError:
    kind, name = fault["type"], ".".join(map(str, location))
    below = ", ".join(str(other[-1]) for other in names if other[:-1] == (location[:-1] if kind == "extra_forbidden" else location))
    if kind == "missing":
        allowed = f"a mapping of {below}" if below else "a value; the field is required"
        example = next((f"{name}.{other[-1]}" for other in names if other[:-1] == location), name)
        return ContractError(place, got="nothing", allowed=allowed, remedy=f"give it, or --set {example}=VALUE")
    if kind == "extra_forbidden":
        return ContractError(place, got="an unknown field", allowed=below, remedy=_nearest(location, names))
    if kind in ("model_type", "model_attributes_type"):
        return ContractError(place, got=brief(fault["input"]), allowed=f"a mapping of {below}", remedy="correct it, or leave it out")
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = TYPES.get(kind) or message[:1].lower() + message[1:]
    field = names.get(location)
    remedy = "correct it"
    if field is not None and not field.is_required():
        remedy += f", or leave it out for {json.dumps(field.get_default(call_default_factory=True))}"
    return ContractError(place, got=brief(fault["input"]), allowed=message, remedy=remedy)


def _nearest(location: Location, names: Mapping[Location, FieldInfo]) -> str:
    """A remedy for an unknown field: the same name elsewhere, else the nearest name beside it, else the nearest anywhere."""
    wrong = str(location[-1])[:80]
    same = [name for name in names if name[-1] == wrong]
    beside = {str(name[-1]): name for name in names if name[:-1] == location[:-1]}
    anywhere = {str(name[-1]): name for name in names}
    for candidates in (beside, anywhere):
        if not same and (near := difflib.get_close_matches(wrong, candidates, n=1)):
            same = [candidates[near[0]]]
    return f"did you mean {'.'.join(map(str, same[0]))}?" if same else "remove it"
