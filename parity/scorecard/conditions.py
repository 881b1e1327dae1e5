"""Conditions: whoever answers prompts. Each kind is a file of its own; the runner knows this interface only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from contract.artifacts.record import Line, Record, Sha256
from parity.scorecard.conditions_training import Training
from parity.scorecard.event import Asked
from parity.scorecard.spec import FixtureFile, HttpGenerate, Local
from parity.scorecard.spec_source import Scorecard

InfraKind = Literal["timeout", "refused", "dropped", "garbage", "rate_limited", "server_error", "worker"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt to be answered: the user's turn. A repair's errors are in that turn too, so that all kinds are asked alike."""

    asked: Asked
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer, of a request of `batch` prompts that took `latency_ms`."""

    text: str
    finish: Literal["stop", "length", "unknown"]
    tokens_in: int
    tokens_out: int
    latency_ms: float
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class BrokeDown:
    """No answer, through no fault of who was to answer."""

    error: InfraKind
    message: str
    latency_ms: float


Outcome = Said | BrokeDown
Doing = Callable[[str], None]
"""Told in a few words what is done now."""


class Facts(Record):
    """What a condition answers with, as a manifest keeps it.

    hashes: name -> SHA-256 of base, adapters, fixture: what a resumed run must find unchanged. runtime_sha256: of the program that runs the
    model, its device and dtype. generation_sha256: of how text is made: template, sampling, length. training: of its adapters.
    """

    hashes: dict[Line, Sha256] = Field(default_factory=dict)
    runtime_sha256: Sha256
    generation_sha256: Sha256
    training: Training | None = None


class Generator(Protocol):
    """Answers prompts. `batch`: how many it wants at a time."""

    batch: int

    def answer(self, asks: Sequence[Ask], doing: Doing) -> Iterator[Sequence[tuple[Ask, Outcome]]]:
        """Each ask with what came of it, in any order, those together that came together, as soon as they did; all are of one seed."""
        ...

    def facts(self) -> Facts:
        """What it answers with."""
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


def open_condition(scorecard: Scorecard, condition: Local | HttpGenerate | FixtureFile) -> Generator:
    """The generator of a condition.

    Raises:
        UserError: a file of it is not sound, or a stack is not here.
    """
    spec = scorecard.spec
    if isinstance(condition, FixtureFile):
        from parity.scorecard.conditions_fixture import Fixture

        fixture = Fixture(condition, beside=scorecard.folder)
        fixture.require([task.id for task in scorecard.tasks], spec.seeds)
        return fixture
    if isinstance(condition, HttpGenerate):
        from parity.scorecard.conditions_http import Server

        return Server(condition, spec.budgets, system=spec.system)
    from parity.scorecard.conditions_local import LocalStack

    return LocalStack(condition, spec)
