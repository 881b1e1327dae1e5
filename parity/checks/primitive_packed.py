"""Cases of single operations, packed: every tensor of every dtype, and the attributes."""

from __future__ import annotations

import numpy as np

from contract.worker import files
from contract.worker.files import FileNeeded, FileReference
from parity.checks.check import Case
from parity.checks.packed import Packed, Tensor, packs, unpacks

REAL = "real"


@packs(Case)
def pack(case: Case) -> Packed:
    """A weight of a checkpoint travels as its reference."""
    tensors: dict[str, Tensor] = {REAL: case.real} if case.real is not None else {}
    file = _bytes_of(case.real)
    for dtype, arrays in case.inputs.items():
        for name, array in arrays.items():
            tensors[f"{dtype}.{name}"] = case.real if case.real is not None and array.tobytes() == file else array
    return Packed(kind="primitive", fields={"name": case.name, "attrs": dict(case.attrs)}, tensors=tensors)


@unpacks("primitive")
def unpack(packed: Packed) -> Case:
    """The case again.

    Raises:
        ValueError: fields that are no case's.
        FileNeeded: the checkpoint is not here.
    """
    name, attrs, real = packed.fields["name"], packed.fields["attrs"], packed.tensors.get(REAL)
    if not isinstance(name, str) or not isinstance(attrs, dict) or not (real is None or isinstance(real, FileReference)):
        raise ValueError("a case has a name, attrs (an object), and as `real` a weight of a checkpoint or nothing")
    inputs: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in packed.tensors.items():
        dtype, dot, own = key.partition(".")
        if dot:
            inputs.setdefault(dtype, {})[own] = files.load(tensor) if isinstance(tensor, FileReference) else tensor
    return Case(name=name, inputs=inputs, attrs=attrs, real=real)


def _bytes_of(real: FileReference | None) -> bytes | None:
    try:
        return None if real is None else files.load(real).tobytes()
    except FileNeeded:
        return None
