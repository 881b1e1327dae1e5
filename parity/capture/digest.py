"""One number for a case's inputs, equal wherever the same case is drawn: an answer may be judged by it and by no other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from contract.training.inputs import Run
from contract.worker.files import FileReference
from parity.checks.check import Case


def digest(case: Case) -> str:
    """SHA-256 over a case's name, attributes and tensors, whatever fields it has; made once a case.

    Where a file lies counts for nothing: a weight in a file counts by the file's SHA-256, a run by the SHA-256 of its files.
    """
    return case.once("digest", lambda: _sha256(case))


def _sha256(case: Case) -> str:
    found = hashlib.sha256()
    for part in _parts(case):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def _parts(value: object) -> Iterator[bytes | memoryview]:
    """What a value is made of; of a kind that has no content of its own (a folder, a function), the kind alone."""
    yield type(value).__name__.encode()
    if isinstance(value, np.ndarray):
        yield repr((value.dtype.name, value.shape)).encode()
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    elif isinstance(value, FileReference):
        yield repr(dataclasses.replace(value, path="")).encode()
    elif isinstance(value, Run):
        yield from _parts([value.plan, sorted(value.data.values()), sorted(value.weights.values()), value.learning_rates, value.initial])
    elif isinstance(value, BaseModel):
        yield value.model_dump_json().encode()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if not field.name.startswith("_"):
                yield field.name.encode()
                yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield repr(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, str | int | float | bool | bytes | None):
        yield repr(value).encode()
    elif isinstance(value, Sequence):
        for item in value:
            yield from _parts(item)
