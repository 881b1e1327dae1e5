"""A cycle on disk: `cycle.json`, who was compared, and `outcomes.jsonl`, one line a lane, training seed and task.

Both are derived from a run's event log; `evidence` names that log and whatever else was judged, with SHA-256, and reading says which of
those files have changed since. A pair for which there is no line is incomplete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from contract.artifacts.promotion import Binding
from contract.artifacts.record import Line, Lines, Name, Packages, Record, Sha256, read_record, write_record
from contract.errors import ContractError, brief
from contract.reading import bytes_of, json_of, validated
from contract.worker.files import replacing
from parity.scorecard.cycle import LANES, Cycle, Gate, Lane, LaneName, Scores, Trained

CYCLE, OUTCOMES = "cycle.json", "outcomes.jsonl"
_REMEDY = "have the scorecard write the cycle again"
_MANY = 1_000_000

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Amount = Annotated[float, Field(ge=0.0, le=1e15)]


class Outcome(Record):
    """One line of outcomes.jsonl; what each field means: parity/scorecard/cycle.py, Scores."""

    lane: LaneName
    seed: int
    task: Line
    infra: bool
    syntax: bool = False
    semantics: bool = False
    success: bool = False
    strict: bool = False
    stalled: bool = False
    valid: bool = False
    attempts: Count = 0
    milliseconds: Amount = 0.0
    tokens: Amount = 0.0


class TrainedRecord(Record):
    """One training run."""

    seed: int
    initial_sha256: Sha256
    order_sha256: Sha256
    adapter_sha256: Sha256


class LaneRecord(Record):
    """One lane."""

    stack: Name
    packages: Packages
    trained: Annotated[tuple[TrainedRecord, ...], Field(strict=False, min_length=1, max_length=1000)]
    hashes: Annotated[dict[Name, Sha256], Field(max_length=256)]
    escapes: Count = 0
    nans: Count = 0
    parity_breaks: Count = 0

    @field_validator("trained")
    @classmethod
    def _distinct(cls, trained: tuple[TrainedRecord, ...]) -> tuple[TrainedRecord, ...]:
        if len({one.seed for one in trained}) < len(trained):
            raise ValueError("each training seed once")
        return trained


class GateRecord(Record):
    """The parity gate's run."""

    digest: Sha256
    exit_code: Annotated[int, Field(ge=0, le=255)]


class TaskRecord(Record):
    """One task of the suite."""

    id: Line
    family: Line


class CycleRecord(Record):
    """The whole of cycle.json."""

    format: Literal["twostack_cycle"] = "twostack_cycle"
    version: Literal[1] = 1
    name: Line
    binding: Binding
    digest: Sha256
    gate: GateRecord | None
    canaries_failed: Lines = ()
    max_attempts: Annotated[int, Field(ge=1, le=1000)]
    max_milliseconds: Annotated[float, Field(gt=0.0, le=1e15)]
    tasks: Annotated[tuple[TaskRecord, ...], Field(strict=False, min_length=1, max_length=_MANY)]
    lanes: dict[LaneName, LaneRecord]
    outcomes_sha256: Sha256
    evidence: Annotated[dict[Line, Sha256], Field(max_length=4096)]

    @model_validator(mode="after")
    def _whole(self) -> CycleRecord:
        if missing := [name for name in LANES[:2] if name not in self.lanes]:
            raise ValueError(f"lanes lacks {', '.join(missing)}")
        if len({task.id for task in self.tasks}) < len(self.tasks):
            raise ValueError("each task once")
        for path in self.evidence:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"evidence names {brief(path)}; give a path inside the folder")
        return self


_VALUES = tuple(name for name in Outcome.model_fields if name not in ("lane", "seed", "task", "infra"))


def write_cycle(folder: Path, cycle: Cycle) -> None:
    """Writes both files, the outcomes first; each whole or not at all."""
    digest = hashlib.sha256()
    with replacing(folder / OUTCOMES) as file:
        for outcome in _outcomes(cycle):
            line = (outcome.model_dump_json() + "\n").encode()
            digest.update(line)
            file.write(line)
    record = CycleRecord(
        name=cycle.name, binding=cycle.binding, digest=cycle.digest,
        gate=None if cycle.gate is None else GateRecord(digest=cycle.gate.digest, exit_code=cycle.gate.exit_code),
        canaries_failed=cycle.canaries_failed, max_attempts=cycle.max_attempts, max_milliseconds=cycle.max_milliseconds,
        tasks=tuple(TaskRecord(id=task, family=family) for task, family in zip(cycle.tasks, cycle.families, strict=True)),
        lanes={name: _lane_record(lane) for name, lane in cycle.lanes().items()},
        outcomes_sha256=digest.hexdigest(), evidence=dict(cycle.evidence),
    )  # fmt: skip
    write_record(folder / CYCLE, record)


def _lane_record(lane: Lane) -> LaneRecord:
    trained = tuple(
        TrainedRecord(seed=one.seed, initial_sha256=one.initial_sha256, order_sha256=one.order_sha256, adapter_sha256=one.adapter_sha256)
        for one in lane.trained
    )
    return LaneRecord(
        stack=lane.stack, packages=dict(lane.packages), trained=trained, hashes=dict(lane.hashes), escapes=lane.escapes, nans=lane.nans,
        parity_breaks=lane.parity_breaks,
    )  # fmt: skip


def _outcomes(cycle: Cycle) -> Iterator[Outcome]:
    for name, lane in cycle.lanes().items():
        scores = lane.scores
        for s, trained in enumerate(lane.trained):
            for t, task in enumerate(cycle.tasks):
                if not (scores.complete[s, t] or scores.infra[s, t]):
                    continue
                values = {value: getattr(scores, value)[s, t].item() for value in _VALUES} if scores.complete[s, t] else {}
                if values:
                    values["attempts"] = int(values["attempts"])
                yield Outcome.model_validate({"lane": name, "seed": trained.seed, "task": task, "infra": not values, **values})


def read_cycle(folder: Path) -> Cycle:
    """Reads a cycle's folder, and holds its evidence to the hashes.

    Raises:
        ContractError: a file is missing, is not what was written, or has a field or line that is not allowed.
        ContractErrors: several such fields.
    """
    record = read_record(CycleRecord, folder / CYCLE, remedy=_REMEDY)
    path = folder / OUTCOMES
    content = bytes_of(path, remedy=_REMEDY)
    if (found := hashlib.sha256(content).hexdigest()) != record.outcomes_sha256:
        raise ContractError(str(path), got=f"SHA-256 {found}", allowed=f"{record.outcomes_sha256}, as {CYCLE} says", remedy=_REMEDY)
    scores = _scores(record, content, path)
    lanes = {name: _lane(lane, scores[name]) for name, lane in record.lanes.items()}
    return Cycle(
        name=record.name, binding=record.binding, digest=record.digest,
        gate=None if record.gate is None else Gate(digest=record.gate.digest, exit_code=record.gate.exit_code),
        canaries_failed=record.canaries_failed, max_attempts=record.max_attempts, max_milliseconds=record.max_milliseconds,
        tasks=tuple(task.id for task in record.tasks), families=tuple(task.family for task in record.tasks),
        baseline=lanes["baseline"], candidate=lanes["candidate"], control=lanes.get("control"),
        evidence={**record.evidence, OUTCOMES: record.outcomes_sha256}, changed=_changed(folder, record.evidence),
    )  # fmt: skip


def _lane(record: LaneRecord, scores: Scores) -> Lane:
    return Lane(
        stack=record.stack, packages=record.packages, hashes=record.hashes, escapes=record.escapes, nans=record.nans,
        parity_breaks=record.parity_breaks, scores=scores, trained=tuple(Trained(**one.model_dump()) for one in record.trained),
    )  # fmt: skip


def _scores(record: CycleRecord, content: bytes, path: Path) -> dict[str, Scores]:
    task = {one.id: number for number, one in enumerate(record.tasks)}
    seeds = {name: {one.seed: number for number, one in enumerate(lane.trained)} for name, lane in record.lanes.items()}
    names = [field.name for field in fields(Scores)]
    reals = ("attempts", "milliseconds", "tokens")
    tables: dict[LaneName, dict[str, Any]] = {
        lane: {name: np.zeros((len(known), len(task)), dtype=np.float64 if name in reals else np.bool_) for name in names}
        for lane, known in seeds.items()
    }
    for number, line in enumerate(content.splitlines(), 1):
        place = f"{path}: line {number}"
        one = validated(Outcome, _object(line, place), place, remedy=_REMEDY)
        at = seeds.get(one.lane, {}).get(one.seed), task.get(one.task)
        if None in at:
            got = f"lane {one.lane}, seed {one.seed}, task {brief(one.task)}"
            raise ContractError(place, got=got, allowed=f"those of {CYCLE}", remedy=_REMEDY)
        table = tables[one.lane]
        if table["complete"][at] or table["infra"][at]:
            raise ContractError(place, got=f"task {brief(one.task)} a second time", allowed="a lane's seed and task once", remedy=_REMEDY)
        if one.attempts > record.max_attempts or (not one.infra and one.attempts == 0):
            raise ContractError(place, got=f"{one.attempts} attempts", allowed=f"1 to {record.max_attempts}", remedy=_REMEDY)
        table["infra" if one.infra else "complete"][at] = True
        for name in _VALUES:
            table[name][at] = getattr(one, name)
    return {lane: Scores(**table) for lane, table in tables.items()}


def _object(line: bytes, place: str) -> Mapping[str, object]:
    value = json_of(line, place, remedy=_REMEDY)
    if not isinstance(value, dict):
        raise ContractError(place, got=f"a {type(value).__name__}", allowed="an object ({...})", remedy=_REMEDY)
    return value


def _changed(folder: Path, evidence: Mapping[str, str]) -> tuple[str, ...]:
    """Files that are gone or differ; one that leads out of the folder by a link is as good as gone."""
    changed = []
    for name, digest in evidence.items():
        path = folder / name
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
        if not inside or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            changed.append(name)
    return tuple(changed)
