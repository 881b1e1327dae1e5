"""What a stack's process shows of the contract that it shares (the request `policy`), read back into rows, sequences and steps.

Legend: N steps, K micro-batches, B sequences, T tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contract.worker.answers import ProtocolBroken
from contract.worker.process import Pending, StackProcess
from parity import goldens
from parity.checks.check import Arrays, Case

GOLDENS = Path(goldens.__file__).parent

RAGGED = ("ids", "labels", "positions", "segments", "samples")
_DIMENSIONS = {"steps": 2, "skipped": 2, "shapes": 2, "lengths": 1, **dict.fromkeys(RAGGED, 1)}
_COLUMNS = {"steps": 4, "skipped": 2, "shapes": 2}
VALIDATION = "validation."

UNSUPERVISED, PADDING = -100, -1
"""The label of a token that carries no loss; the segment and the sample of padding (docs/protocol.md)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyCase(Case):
    """What is asked of the policy.

    asked:  the values of each request.
    folder: holds the files of the runs that they name.
    """

    asked: tuple[Mapping[str, Any], ...]
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyAsk:
    """One request (an Ask)."""

    case: PolicyCase
    number: int

    def key(self) -> tuple[object, ...]:
        """Equal for the same request of the same case."""
        return "policy", id(self.case), self.number

    def send(self, process: StackProcess) -> Pending:
        """Sends it; arrays go as tensors."""
        asked = self.case.asked[self.number]
        tensors = {name: value for name, value in asked.items() if isinstance(value, np.ndarray)}
        return process.submit("policy", {name: value for name, value in asked.items() if name not in tensors}, tensors)

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds an answer against what the part of the policy is.

        Raises:
            ProtocolBroken: a tensor is missing, extra, of the wrong dtype or dimensions; a ledger that contradicts itself.
        """
        of = self.case.asked[self.number]["of"]
        wanted = {"masks": {"kept": "bool"}, "draws": {"u": "float64"}}.get(of, {})
        if of == "run":
            initial = [name for name in answered if name.startswith("initial.")]
            wanted = {"learning_rates": "float64", **dict.fromkeys(initial, "float32")}
            wanted |= {f"{start}{name}": "int64" for start in ("", VALIDATION) for name in _DIMENSIONS}
        for name in sorted({*wanted, *answered}):
            got = answered[name].dtype.name if name in answered else None
            if got != wanted.get(name):
                raise ProtocolBroken(f"{stack}: broke the protocol: answered {name} as {got}, must be {wanted.get(name)}")
        if of == "run":
            for start in ("", VALIDATION):
                _require_ledger(stack, start, answered)


def _require_ledger(stack: str, start: str, answered: Arrays) -> None:
    told = {name: answered[f"{start}{name}"] for name in _DIMENSIONS}
    wrong = [name for name, dimensions in _DIMENSIONS.items() if told[name].ndim != dimensions]
    wrong = wrong or [name for name, columns in _COLUMNS.items() if told[name].shape[1] != columns]
    if not wrong:
        tokens, sequences = int(told["shapes"].prod(axis=1).sum()), int(told["shapes"][:, 0].sum())
        wrong = [name for name in RAGGED if told[name].size != tokens]
        wrong += ["lengths"] if told["lengths"].size != sequences else []
        wrong += ["steps"] if told["steps"][:, 3].sum() != len(told["shapes"]) else []
    if wrong:
        raise ProtocolBroken(f"{stack}: broke the protocol: {start}{wrong[0]} is {told[wrong[0]].shape}, which the rest contradicts")


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row as it stands in a sequence: its number in the file, from 0; its tokens, int64."""

    sample: int
    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ShownBatch:
    """A micro-batch, int64 [B, T] and lengths [B]."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    samples: np.ndarray
    lengths: np.ndarray

    def sequences(self) -> Iterator[tuple[ShownRow, ...]]:
        """The rows of each sequence, by the segments that its tokens are told to be of."""
        for at in range(len(self.ids)):
            segments = self.segments[at]
            numbers = sorted(set(segments[segments != PADDING].tolist()))
            yield tuple(self._row(at, segments == number) for number in numbers)

    def _row(self, at: int, own: np.ndarray) -> ShownRow:
        parts = {name: getattr(self, name)[at][own] for name in ("ids", "labels", "positions")}
        return ShownRow(sample=int(self.samples[at][own][0]), **parts)


@dataclass(frozen=True, kw_only=True)
class ShownStep:
    """An optimiser step."""

    number: int
    epoch: int
    tokens: int
    batches: tuple[ShownBatch, ...]
    skipped: tuple[int, ...]

    def rows(self) -> list[ShownRow]:
        """Every row, in order."""
        return [row for batch in self.batches for sequence in batch.sequences() for row in sequence]


def steps_of(answered: Arrays, start: str = "") -> list[ShownStep]:
    """The steps that a ledger shows; `start`: VALIDATION for those of the validation."""
    told = {name: answered[f"{start}{name}"] for name in _DIMENSIONS}
    batches, token, sequence = [], 0, 0
    for count, width in told["shapes"].tolist():
        part, lengths = slice(token, token + count * width), told["lengths"][sequence : sequence + count]
        fields = {name: told[name][part].reshape(count, width) for name in RAGGED}
        batches.append(ShownBatch(**fields, lengths=lengths))
        token, sequence = part.stop, sequence + count
    steps, at = [], 0
    for number, epoch, tokens, count in told["steps"].tolist():
        skipped = tuple(told["skipped"][told["skipped"][:, 0] == number, 1].tolist())
        steps.append(ShownStep(number=number, epoch=epoch, tokens=tokens, batches=tuple(batches[at : at + count]), skipped=skipped))
        at += count
    return steps


def asks(case: Case) -> tuple[PolicyAsk, ...]:
    """Every request of a case."""
    assert isinstance(case, PolicyCase)
    return tuple(PolicyAsk(case=case, number=number) for number in range(len(case.asked)))


def golden(name: str) -> dict[str, Any]:
    """One of the files beside parity/goldens/__init__.py."""
    found: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def samples_of(steps: Sequence[ShownStep]) -> list[int]:
    """The rows that steps learn from, in order."""
    return [row.sample for step in steps for row in step.rows()]
