"""The record of a run: versioned, written as JSON, the source of every other report.

Numbers that JSON can't hold (an infinite difference, NaN) are spelled as the strings "Infinity", "-Infinity" and "NaN".
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.worker.files import replacing
from parity.find.fault import Fault
from parity.report.number import Number


class Status(StrEnum):
    """What became of a cell."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"
    WAIVED = "waived"
    NOT_COVERED = "not_covered"
    UNCOVERED_ALLOWED = "uncovered_allowed"
    NOT_APPLICABLE = "not_applicable"
    LEFT_TO_NIGHTLY = "left_to_nightly"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Controls(_Record):
    """Negative controls of a cell's comparisons: how many were applied, how many were caught."""

    applied: int = 0
    caught: int = 0


class Tightness(_Record):
    """observed / bound over all examples of a tensor; each example counts with its component of least head-room."""

    median: Number
    most: Number = Field(description="99 % of the examples lie at or below it")
    largest: Number


class TensorResult(_Record):
    """The tightest comparison of one tensor over all examples."""

    tensor: str
    observed: Number
    bound: Number
    unit: str
    bound_source: str
    headroom: Number | None = Field(description="bound / observed; null where nothing was observed")
    relative: Number | None = Field(default=None, description="graphs: the largest |difference| / |reference| of a row")
    tightness: Tightness | None = Field(default=None, description="null where a bound is 0: bit for bit")
    case: str


class Result(_Record):
    """One cell: a question of a check, asked of one stack or of two, in one dtype."""

    id: str
    tier: str
    title: str
    stacks: tuple[str, ...]
    question: str
    device: tuple[str, ...]
    dtype: str
    status: Status
    observed: Number | None = None
    bound: Number | None = None
    bound_source: str = ""
    headroom: Number | None = None
    examples: int = 0
    real_weights: int = Field(default=0, description="how many of the examples are of a real checkpoint")
    drawn: int = Field(default=0, description="how many of the examples were drawn")
    alarms: int = Field(default=0, description="drawn examples on which a comparison failed")
    alarm_rate: float | None = Field(
        default=None, description="drawn examples fail less often than that, with 95 % confidence (Clopper-Pearson)"
    )
    seconds: float = Field(default=0.0, description="the run's time while this cell's check was asked, shared by its cells")
    reason: str = Field(default="", description="why it is not pass: what failed, died, was skipped or does not apply")
    beneath: Status | None = Field(
        default=None, description="of a failed cell: error or not_covered, where it is that as well; a waiver then shows it"
    )
    tensors: tuple[TensorResult, ...] = ()
    controls: Controls = Controls()
    faults: tuple[Fault, ...] = Field(default=(), description="graphs: the operations at fault, found by bisect")
    again: str = Field(default="", description="the command that asks this cell again, with the same draws")
    snippet: str = Field(default="", description="a program that shows the failure again")
    reproducer: str = Field(default="", description="the file that `parity replay` shows the failure from")
    no_reproducer: str = Field(default="", description="why a failure has no such file")


class StackRecord(_Record):
    """A stack of the run."""

    name: str
    device: str
    lane: str
    versions: dict[str, str]


class ContractRecord(_Record):
    """The contract of a user's own run, as c.run and d.run took it."""

    file: str
    preset: str | None
    settings: tuple[str, ...] = Field(description="KEY=VALUE over the file")
    model: str | None = Field(description="a checkpoint in place of the contract's")
    digest: str
    asked: dict[str, tuple[str, ...]] = Field(description="check -> what of the run it took, or why nothing")
    paths: dict[str, tuple[str, ...]] = Field(description="stack -> the production paths that its run takes")
    declined: dict[str, str] = Field(description="stack -> why it does not take this run")


class CheckTiming(_Record):
    """Where a check's time went, in seconds."""

    wall: float
    by_stack: dict[str, float] = Field(description="busy with requests, of opening graphs too")
    judging: float = Field(description="references, perturbed runs and verdicts; of a graph the reference is made while stacks are busy")


class Timing(_Record):
    """Where the time went, in seconds. Overhead is what remains of the wall time while no stack was busy, over that busy time."""

    wall: float
    busy: float = Field(description="time during which at least one stack was computing")
    by_stack: dict[str, float]
    start: float = Field(description="starting the workers, before the first request")
    checks: dict[str, CheckTiming] = Field(default={}, description="check -> where its time went")

    @property
    def overhead(self) -> float | None:
        """(wall - busy) / busy."""
        return None if self.busy == 0 else (self.wall - self.busy) / self.busy


class Run(_Record):
    """A whole run."""

    schema_version: Literal[1] = 1
    twostack: str
    started: str = Field(description="UTC, ISO 8601")
    machine: dict[str, str]
    tiers: tuple[str, ...]
    profile: str
    seed: int
    false_alarm: float = Field(description="probability that a run of stacks that are right fails by chance")
    mutants: tuple[str, ...] = ()
    model: str = Field(default="", description="the checkpoint of tier C: a name, a hub id or a folder")
    contract: ContractRecord | None = Field(default=None, description="a user's own run")
    rerun_of: str = Field(default="", description="when the run began whose cells that were not green this one asked again")
    stacks: tuple[StackRecord, ...]
    results: tuple[Result, ...]
    problems: tuple[str, ...] = Field(default=(), description="what makes the run red besides its cells: expired or unused waivers")
    timing: Timing
    exit_code: int


def exit_code(results: tuple[Result, ...], problems: tuple[str, ...]) -> int:
    """0 pass, 1 divergence (or a stale waiver), 3 harness error, 4 not covered; of several, in the order 1, 3, 4."""
    states = {result.status for result in results}
    if Status.FAIL in states or problems:
        return 1
    if Status.ERROR in states:
        return 3
    if Status.NOT_COVERED in states or not states & {Status.PASS, Status.WAIVED}:
        return 4
    return 0


def write(run: Run, path: Path) -> None:
    """Writes the record as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(run.model_dump_json(indent=2).encode())


def json_schema() -> str:
    """The JSON Schema of the record (docs/run.schema.json)."""
    return json.dumps(Run.model_json_schema(mode="serialization"), indent=2) + "\n"
