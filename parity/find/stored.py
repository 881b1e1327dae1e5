"""The file of one failure: what a cell asked on one input, what every stack answered, and what was wrong with it.

A safetensors file of at most 1 MB; nothing in it is executed, and nothing is allocated that its size does not bear out:

    metadata                         `twostack`: a Record as JSON
    case/NAME  neighbour/NAME        tensors of the failing case, and of one close by that passes
    answer/STACK/INDEX/NAME          what a stack answered to the plan's request of that number
    neighbour_answer/STACK/...       the same of the neighbour

A weight of a checkpoint is in the record, by its file's SHA-256 and its name in there. The file's name ends in its content's SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract import reading
from contract.errors import ContractError, UserError, brief
from contract.model import headers
from contract.worker import wire
from contract.worker.files import FileReference, replacing
from parity.checks.check import Arrays
from parity.checks.packed import MOST_BYTES, Packed, Tensor
from parity.report.number import Number

_METADATA, _OWN = "__metadata__", "twostack"
_NAMED = re.compile(r"-([0-9a-f]{12})\.safetensors$")
_NUMBER = re.compile("0|[1-9][0-9]{0,2}")

Answers = Mapping[str, Sequence[Arrays]]
"""Stack -> its answers to a plan's requests, in their order."""


class TooLarge(ValueError):
    """A failure that a file of 1 MB can't hold."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class WeightOf(_Stored):
    """A weight of a checkpoint, without saying where that lies."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tensor: str
    start: int | None = None
    stop: int | None = None
    transposed: bool = False


class StoredCase(_Stored):
    """A packed case, less its tensors."""

    kind: str
    fields: dict[str, Any]
    weights: dict[str, WeightOf] = Field(default_factory=dict)


class StackThen(_Stored):
    """A stack of the cell as it was; suspect: alone, its answers are further from the reference than its dtype explains."""

    name: str
    device: str
    versions: dict[str, str]
    suspect: bool


class Kind(_Stored):
    """What makes two failures the same one: the tensor that is wrong, and in what unit; not by how much."""

    tensor: str
    unit: str


class Record(_Stored):
    """One failure."""

    schema_version: Literal[1] = 1
    twostack: str
    machine: dict[str, str]
    stacks: tuple[StackThen, ...] = Field(min_length=1)
    check: str
    question: str
    dtype: str
    failed: Kind
    place: str
    where: tuple[int, ...] | None
    got: Number | None
    wanted: Number | None
    observed: Number
    bound: Number
    bound_source: str
    false_alarm: float = Field(gt=0, lt=1, description="what one comparison may spend: the bound rests on it")
    asked: str = Field(description="digest of what the check asks on this input: another version may ask otherwise")
    kept: tuple[str, ...] | None = Field(description="the tensors that answers were narrowed to; null: all")
    profile: str
    seed: int
    mutants: tuple[str, ...]
    model: str = Field(description="the checkpoint that weights are of; empty: none")
    again: str = Field(description="the command that asks the whole cell again")
    case: StoredCase
    neighbour: StoredCase | None
    no_neighbour: str = Field(default="", description="why there is none")


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """A record with its tensors."""

    record: Record
    case: Packed
    answers: Answers
    neighbour: Packed | None = None
    neighbour_answers: Answers | None = None


def describe(packed: Packed) -> StoredCase:
    """What a record says of a packed case."""
    weights = {name: _weight(tensor) for name, tensor in packed.tensors.items() if isinstance(tensor, FileReference)}
    return StoredCase(kind=packed.kind, fields=dict(packed.fields), weights=weights)


def _weight(reference: FileReference) -> WeightOf:
    return WeightOf.model_validate({name: value for name, value in reference.fields().items() if name != "path"})


def encode(failure: Failure) -> bytes:
    """The file's content.

    Raises:
        TooLarge: it is over 1 MB.
        ValueError: a field that JSON can't hold, a tensor that safetensors can't.
    """
    tensors = {f"case/{name}": array for name, array in _arrays(failure.case)} | _named("answer", failure.answers)
    if failure.neighbour is not None:
        tensors |= {f"neighbour/{name}": array for name, array in _arrays(failure.neighbour)}
        tensors |= _named("neighbour_answer", failure.neighbour_answers or {})
    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    content = safetensors.numpy.save(whole, {_OWN: failure.record.model_dump_json()})
    if len(content) > MOST_BYTES:
        raise TooLarge(f"{len(content):,} bytes, and {MOST_BYTES:,} are allowed")
    return content


def require_size(packed: Packed, answers: Answers) -> None:
    """Raises TooLarge where the tensors alone are too large for a file."""
    arrays = [array for _, array in _arrays(packed)] + [array for of in answers.values() for one in of for array in one.values()]
    size = sum(array.nbytes for array in arrays)
    if size > MOST_BYTES:
        raise TooLarge(f"{size:,} bytes of tensors, and {MOST_BYTES:,} are allowed")


def write(folder: Path, failure: Failure) -> Path:
    """Writes the file, whole or not at all, under the name that its content gives it.

    Raises:
        TooLarge, ValueError: as `encode`.
        OSError: it can't be written.
    """
    content, record = encode(failure), failure.record
    digest = hashlib.sha256(content).hexdigest()[:12]
    path = folder / f"{record.check}-{record.question}-{record.dtype}-{digest}.safetensors"
    with replacing(path) as file:
        file.write(content)
    return path


def read(path: Path) -> Failure:
    """The failure in a file, whose weights of checkpoints have no path yet (`Failure.record.case.weights` names them).

    Raises:
        UserError: it is no such file, damaged, of another version's format, or larger than 1 MB.
    """
    remedy = "give a file that parity run wrote, as it wrote it"
    try:
        content = reading.bytes_of(path, limit=MOST_BYTES, remedy=remedy)
        headers.read(path)  # strict: sizes that contradict each other, gaps, a name twice
        record = _record(path, content)
        tensors = wire.unpack(content)
    except ContractError as error:
        raise UserError(f"{error.place}: got {error.got}; allowed: {error.allowed}; {remedy}") from None
    except wire.WireError as error:
        raise UserError(f"{path}: {error}; {remedy}") from None
    named = _NAMED.search(path.name)
    if named is not None and not hashlib.sha256(content).hexdigest().startswith(named[1]):
        raise UserError(f"{path}: its content is not the one that its name gives ({named[1]}); it was damaged or changed: copy it again")
    groups = _grouped(path, tensors)
    neighbour = None if record.neighbour is None else _packed(record.neighbour, groups["neighbour"])
    return Failure(
        record=record, case=_packed(record.case, groups["case"]), answers=_answers(path, record, groups["answer"]), neighbour=neighbour,
        neighbour_answers=None if neighbour is None else _answers(path, record, groups["neighbour_answer"]),
    )  # fmt: skip


def _record(path: Path, content: bytes) -> Record:
    length = int.from_bytes(content[:8], "little")
    metadata = reading.json_of(content[8 : 8 + length], f"{path}: header").get(_METADATA, {})
    if _OWN not in metadata:
        raise UserError(f"{path}: a safetensors file without a failure in it; give a file that parity run wrote")
    fields = reading.json_of(metadata[_OWN].encode(), f"{path}: record")
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != 1:
        raise UserError(f"{path}: a failure in format {brief(version)}; this version reads 1; replay it with the version that wrote it")
    try:
        return Record.model_validate_json(metadata[_OWN])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(f"{path}: record, {brief(place)}: {first['msg']}; give a file that parity run wrote, as it wrote it") from None


def _grouped(path: Path, tensors: Arrays) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {"case": {}, "neighbour": {}, "answer": {}, "neighbour_answer": {}}
    for key, array in tensors.items():
        group, slash, name = key.partition("/")
        if not slash or group not in groups:
            raise UserError(f"{path}: has a tensor {brief(key)}; allowed: {', '.join(f'{one}/...' for one in groups)}")
        groups[group][name] = array
    return groups


def _packed(stored: StoredCase, arrays: Arrays) -> Packed:
    weights = {name: FileReference(path="", **weight.model_dump()) for name, weight in stored.weights.items()}
    return Packed(kind=stored.kind, fields=stored.fields, tensors={**arrays, **weights})


def _answers(path: Path, record: Record, arrays: Arrays) -> dict[str, list[dict[str, np.ndarray]]]:
    """Every stack's, by request; a request that is answered with nothing has no tensor and stays an empty answer."""
    found: dict[str, list[dict[str, np.ndarray]]] = {stack.name: [] for stack in record.stacks}
    for key, array in arrays.items():
        stack, _, rest = key.partition("/")
        index, slash, name = rest.partition("/")
        if stack not in found or not slash or not _NUMBER.fullmatch(index):
            raise UserError(f"{path}: has an answer {brief(key)}; allowed: STACK/NUMBER/NAME of a stack that the record names")
        answers = found[stack]
        answers += ({} for _ in range(int(index) + 1 - len(answers)))
        answers[int(index)][name] = array
    return found


def _arrays(packed: Packed) -> list[tuple[str, np.ndarray]]:
    return [(name, tensor) for name, tensor in packed.tensors.items() if isinstance(tensor, np.ndarray)]


def _named(group: str, answers: Answers) -> dict[str, np.ndarray]:
    return {
        f"{group}/{stack}/{index}/{name}": array
        for stack, of_stack in answers.items()
        for index, answer in enumerate(of_stack)
        for name, array in answer.items()
    }


def resolved(packed: Packed, paths: Mapping[str, str]) -> Packed:
    """With the files that weights lie in on this machine, by their SHA-256.

    Raises:
        KeyError: the hash of a file that is not there.
    """
    tensors: dict[str, Tensor] = {
        name: FileReference(**{**tensor.fields(), "path": paths[tensor.sha256]}) if isinstance(tensor, FileReference) else tensor
        for name, tensor in packed.tensors.items()
    }
    return Packed(kind=packed.kind, fields=packed.fields, tensors=tensors)
