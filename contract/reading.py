"""Reading what others wrote: JSON with nothing left to interpretation, and a model of it.

Readers of JSON differ in which of two equal keys they take, in NaN, and in how deep they go; a file that two programs may read
differently is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from contract.errors import ContractError, ContractErrors, brief

MAX_JSON_BYTES = 256 * 2**20
"""No configuration, index or tokenizer comes near; a larger file is not read at all."""

Model = TypeVar("Model", bound=BaseModel)

_PLAIN = re.compile(r"[\w.-]{1,128}", re.ASCII)
"""A name that can stand in a message as it is."""


def bytes_of(path: Path, *, limit: int = MAX_JSON_BYTES, remedy: str = "give the right file") -> bytes:
    """A whole file.

    Raises:
        ContractError: it's not there, is no file, can't be read, or is larger than `limit` bytes.
    """
    try:
        if not path.is_file():
            got = "a folder" if path.is_dir() else "something that is no file" if path.exists() else "no such file"
            raise ContractError(str(path), got=got, allowed="a file", remedy=remedy)
        size = path.stat().st_size
        if size > limit:
            raise ContractError(str(path), got=f"{size:,} bytes", allowed=f"{limit:,} at most", remedy=remedy)
        return path.read_bytes()
    except OSError as error:
        raise ContractError(str(path), got=error.strerror or str(error), allowed="a file to read", remedy="see to its rights") from None
    except ValueError as error:  # a path with NUL in it
        if isinstance(error, ContractError):
            raise
        raise ContractError(brief(str(path)), got=str(error), allowed="a path", remedy=remedy) from None


def json_of(content: bytes, place: str, *, remedy: str = "write it anew") -> Any:
    """What JSON text holds.

    Raises:
        ContractError: it's not UTF-8, no JSON, nested too deep, has a key twice, NaN, Infinity, a number that float64 can't hold, or half
            of a surrogate pair.
    """

    def refuse(got: str) -> NoReturn:
        raise ContractError(place, got=got, allowed="JSON (RFC 8259) in UTF-8, each key once, finite numbers", remedy=remedy)

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
            refuse(f"{brief(name)} twice")
        return value

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            refuse(f"the number {brief(text)}")
        return number

    try:
        text = content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=distinct, parse_float=finite, parse_constant=lambda name: refuse(name))
        if "\\u" in text:  # an escape may hold half of a surrogate pair, which no UTF-8 text can
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except ContractError:
        raise
    except UnicodeDecodeError as error:
        refuse(f"byte {content[error.start]:#04x} at offset {error.start}, which is no UTF-8")
    except UnicodeEncodeError:
        refuse("half of a surrogate pair")
    except RecursionError:
        refuse("values nested too deep")
    except json.JSONDecodeError as error:
        refuse(f"text that is no JSON ({error})")
    except ValueError:  # Python's own: it converts 4,300 digits and no more
        refuse("an integer of thousands of digits")
    return value


def json_file(path: Path, *, limit: int = MAX_JSON_BYTES, remedy: str = "give the right file") -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ContractError: as `bytes_of` and `json_of`, or it holds something other than an object.
    """
    value = json_of(bytes_of(path, limit=limit, remedy=remedy), str(path), remedy=remedy)
    if not isinstance(value, dict):
        raise ContractError(str(path), got=f"a {type(value).__name__}", allowed="an object ({...})", remedy=remedy)
    return value


def validated(model: type[Model], value: Mapping[str, Any], place: str, *, remedy: str = "correct it") -> Model:
    """A model of parsed data.

    Raises:
        ContractError: one field is not what the model allows.
        ContractErrors: several are not.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = [_fault(fault, model, place, remedy) for fault in error.errors()]
        raise (faults[0] if len(faults) == 1 else ContractErrors(faults)) from None


def _fault(fault: Any, model: type[BaseModel], place: str, remedy: str) -> ContractError:
    location = fault["loc"]
    if location[-1:] == ("[key]",) and fault["type"] != "extra_forbidden":  # pydantic's mark for a mapping's key
        location = location[:-1]
    where = ".".join(part if _PLAIN.fullmatch(part) else brief(part) for part in map(str, location))
    spot = f"{place}: {where}" if where else place
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        return ContractError(spot, got="nothing", allowed="a value; the field is required", remedy=remedy)
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_fields_at(model, fault["loc"][:-1]))
        return ContractError(spot, got="an unknown field", allowed=known or "the documented fields", remedy=remedy)
    allowed = message[0].lower() + message[1:] if message else "another value"
    return ContractError(spot, got=brief(fault["input"]), allowed=allowed, remedy=remedy)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The fields of the model at a location, where it can be followed."""
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
