"""What every JSON file of a run has in common: a strict, frozen model, one way to write it, one way to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from contract.reading import json_file, validated
from contract.worker.files import replacing

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
Line = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text of one line, without control characters."""

Lines = Annotated[tuple[Line, ...], Field(strict=False, max_length=4096)]
Packages = Annotated[dict[Name, Line], Field(min_length=1, max_length=256)]
"""Distribution -> version."""


Read = TypeVar("Read", bound=BaseModel)


class Record(BaseModel):
    """The base of what is written as JSON: unknown fields are refused, no value is taken for another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def to_json(value: Mapping[str, Any]) -> bytes:
    """JSON text: the same bytes for the same values, whatever order they were given in."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_record(path: Path, record: BaseModel) -> None:
    """Writes a record in place of what is there, whole or not at all; the same bytes for the same record."""
    content = to_json(record.model_dump(mode="json"))
    with replacing(path) as file:
        file.write(content)


def read_record(model: type[Read], path: Path, *, remedy: str) -> Read:
    """Reads a record.

    Raises:
        ContractError: no such file, no JSON, another format or version, an unknown, missing or wrong field.
        ContractErrors: several such fields.
    """
    return validated(model, json_file(path, remedy=remedy), str(path), remedy=remedy)
