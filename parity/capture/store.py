"""A capture's files: index.json says what was asked of which stack, CHECK/NUMBER.safetensors holds the answers to one example.

Every file is written whole or not at all. An example's file has each answer's tensors under ORDINAL/NAME, bit for bit, and under
the metadata's one key everything else. Nothing is ever pickled; a file from elsewhere that is not sound is refused in words.
"""

from __future__ import annotations

import importlib.metadata
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import MissingError, UserError, printable
from contract.worker import wire
from contract.worker.answers import Answer, HarnessError, RequestFailed
from contract.worker.capabilities import Capabilities
from contract.worker.files import replacing

INDEX = "index.json"
_DRAWS = ("twostack", "numpy", "hypothesis")
_KEY = "capture"
_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 64 * 2**20

Outcome = Answer | HarnessError | RequestFailed
"""What came of a request."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckIndex(_Stored):
    """One check: how many examples were asked; `missing` says why not all were, if so."""

    examples: int
    missing: str = ""


class Index(_Stored):
    """What was asked of whom.

    Attributes:
        dtypes: in which the stack computes on its device.
        draws: versions of what draws the inputs.
        tiers, only: what was selected; empty selections mean everything.
        checks: those that are whole, by id.
        complete: whether all of them are.
    """

    schema_version: Literal[1] = 1
    twostack: str
    draws: dict[str, str]
    started: str
    machine: dict[str, str]
    stack: str
    device: str
    capabilities: Capabilities
    dtypes: tuple[str, ...]
    versions: dict[str, str]
    probe: dict[str, Any]
    profile: str
    seed: int
    model: str
    mutants: tuple[str, ...]
    tiers: tuple[str, ...]
    only: tuple[str, ...]
    checks: dict[str, CheckIndex] = {}
    complete: bool = False


class _Failed(_Stored):
    """An error in an answer's place; `error_class` is empty where the worker failed and not the stack."""

    error_class: str
    message: str
    trace: str = ""


class _Described(_Stored):
    """An example's file, less the tensors."""

    stack: str
    case: str
    digest: str
    values: dict[int, dict[str, Any]]
    failed: dict[int, _Failed]


class Recorded(BaseModel):
    """One example as it was asked: its case's name and digest, and what came of each request by its ordinal."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    case: str
    digest: str
    outcomes: Mapping[int, Outcome]


def draws() -> dict[str, str]:
    """Versions of what draws the inputs here."""
    return {package: importlib.metadata.version(package) for package in _DRAWS}


def write_index(folder: Path, index: Index) -> None:
    """Writes the index, whole or not at all."""
    with replacing(folder / INDEX) as file:
        file.write(index.model_dump_json(indent=2).encode())


def read_index(folder: Path) -> Index:
    """The index of a capture.

    Raises:
        MissingError: there is none.
        UserError: it is not sound.
    """
    path = folder / INDEX
    try:
        return Index.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"{folder} holds no capture ({INDEX} is not there); make one: parity capture --stack NAME --out DIR") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); give a folder that parity capture wrote") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}; capture again with this version of twostack") from None


def path_of(folder: Path, check_id: str, number: int) -> Path:
    """Where an example lies."""
    return folder / check_id / f"{number}.safetensors"


def write_example(path: Path, recorded: Recorded, stack: str) -> None:
    """Writes one example of a stack, whole or not at all."""
    tensors: dict[str, np.ndarray] = {}
    values: dict[int, dict[str, Any]] = {}
    failed: dict[int, _Failed] = {}
    for ordinal, outcome in recorded.outcomes.items():
        if isinstance(outcome, Answer):
            values[ordinal] = outcome.values
            tensors |= {f"{ordinal}/{name}": tensor for name, tensor in outcome.tensors.items()}
        elif isinstance(outcome, RequestFailed):
            failed[ordinal] = _Failed(error_class=outcome.error_class, message=outcome.message, trace=outcome.trace)
        else:
            failed[ordinal] = _Failed(error_class="", message=str(outcome))
    described = _Described(stack=stack, case=recorded.case, digest=recorded.digest, values=values, failed=failed)
    whole = {name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in tensors.items()}
    with replacing(path) as file:
        file.write(safetensors.numpy.save(whole, {_KEY: described.model_dump_json()}))


def read_example(path: Path, stack: str) -> Recorded | None:
    """One example; None where it was not asked.

    Raises:
        UserError: the file can't be read, is not sound, or is of another stack.
    """
    try:
        content = path.read_bytes()
        described = _Described.model_validate_json(_metadata(content))
        tensors = wire.unpack(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); copy the capture again") from None
    except (ValueError, KeyError, wire.WireError) as error:
        raise UserError(f"{path} is no example of a capture ({' '.join(str(error).split())[:200]}); copy the capture again") from None
    if described.stack != stack:
        raise UserError(f"{path} holds answers of {printable(described.stack)}, and the capture is of {stack}; copy the capture again")
    outcomes: dict[int, Outcome] = {
        ordinal: RequestFailed(stack, one.error_class, one.message, one.trace) if one.error_class else HarnessError(one.message)
        for ordinal, one in described.failed.items()
    }
    for ordinal, values in described.values.items():
        outcomes[ordinal] = Answer(values, {})
    for name, tensor in tensors.items():
        of, _, own = name.partition("/")
        outcome = outcomes.get(int(of)) if of.isdecimal() else None
        if not isinstance(outcome, Answer):
            raise UserError(f"{path} is no example of a capture (tensor {name!r} belongs to no answer); copy the capture again")
        outcome.tensors[own] = tensor
    return Recorded(case=described.case, digest=described.digest, outcomes=outcomes)


def _metadata(content: bytes) -> str:
    """What safetensors' own reader does not give: the header's metadata."""
    if len(content) < _LENGTH.size:
        raise ValueError("it is cut short")
    (length,) = _LENGTH.unpack_from(content)
    if length > min(len(content) - _LENGTH.size, _LARGEST_HEADER):
        raise ValueError(f"a header of {length} bytes, in a file of {len(content)}")
    header = json.loads(content[_LENGTH.size : _LENGTH.size + length])
    return str(header["__metadata__"][_KEY])
