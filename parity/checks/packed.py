"""Cases that travel: what a case is made of, as JSON's values and tensors, and how it is made again elsewhere.

A case of kind K is packed by `Case.pack`, and made again by the function that is registered for K. Weights of a checkpoint travel as
references: by the hash of their file and the tensor's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.worker.files import FileReference

if TYPE_CHECKING:
    from parity.checks.check import Case

MOST_BYTES = 1_000_000
"""Of a case with its answers, in one file."""

Tensor = np.ndarray | FileReference


class CanNotTravel(ValueError):
    """A case of a kind that nothing packs; the message says which."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A case on its way.

    kind:    primitive, graph, step, ...: names the function that makes the case again
    fields:  JSON's values
    tensors: by any name without a slash
    """

    kind: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


Unpack = Callable[[Packed], "Case"]
"""Raises ValueError (KeyError, TypeError) for fields and tensors that are no case: what it is given may come from anywhere."""

Pack = Callable[[Any], Packed]

UNPACKERS: dict[str, Unpack] = {}
PACKERS: dict[type, Pack] = {}
"""By the exact class of the case; a class that overrides `Case.pack` needs none."""


def unpacks(kind: str) -> Callable[[Unpack], Unpack]:
    """Registers the function that makes cases of a kind again."""

    def register(unpack: Unpack) -> Unpack:
        assert kind not in UNPACKERS, f"two functions unpack {kind}"
        UNPACKERS[kind] = unpack
        return unpack

    return register


def packs(case_type: type) -> Callable[[Pack], Pack]:
    """Registers the function that packs cases of one class."""

    def register(pack: Pack) -> Pack:
        PACKERS[case_type] = pack
        return pack

    return register


def pack(case: Case) -> Packed:
    """A case as it travels.

    Raises:
        CanNotTravel: nothing packs such a case.
    """
    if type(case) not in PACKERS:
        raise CanNotTravel(f"a case of the kind {type(case).__name__} can't be packed into a file yet")
    return PACKERS[type(case)](case)


def unpack(packed: Packed) -> Case:
    """The case again.

    Raises:
        CanNotTravel: of a kind that nothing makes.
        ValueError, KeyError, TypeError: what was packed is no such case.
    """
    if packed.kind not in UNPACKERS:
        raise CanNotTravel(f"there is no case of the kind {packed.kind!r}; allowed: {', '.join(sorted(UNPACKERS))}")
    return UNPACKERS[packed.kind](packed)
