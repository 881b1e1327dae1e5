"""What `parity promote` says: the decision, its reasons, and every number that it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.artifacts.promotion import Binding, Decision
from contract.worker.files import replacing
from parity.report.number import Number

EXIT_CODES: dict[Decision, int] = {"PROMOTE": 0, "REJECT": 10, "HOLD": 11, "INVALID": 12}
POOLED = "pooled"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Measured(_Record):
    """One metric of one cycle, or of all of them pooled."""

    scope: str = Field(description="a cycle's name, or pooled")
    metric: str
    baseline: Number = Field(description="the lane's mean over complete pairs")
    candidate: Number
    delta: Number = Field(description="candidate - baseline; divided by baseline's where the metric is relative")
    relative: bool
    loss: Number = Field(description="the delta, so signed that the candidate is worse where it's positive")
    lower: Number = Field(description="with confidence 1 - alpha the loss is at least that: the lower of BCa's and t's bound")
    upper: Number = Field(description="with confidence 1 - alpha the loss is at most that: the upper of BCa's and t's bound")
    bca_upper: Number
    t_upper: Number
    alpha: float
    margin: float | None = Field(description="null where the metric decides nothing")
    passed: bool | None = Field(description="upper < margin; null where the metric decides nothing")
    minimum_detectable: Number = Field(description="the true loss that this evidence would find with the rule's power")


class Flips(_Record):
    """How often answers differ in one cycle, in semantics."""

    scope: str
    flip_rate: Number = Field(description="share of complete pairs of which one is right and the other wrong")
    control_flip_rate: Number = Field(description="the same of the production backend and itself")
    lost: int = Field(description="on the pre-registered seed: tasks that only the baseline got right")
    won: int = Field(description="on the pre-registered seed: tasks that only the candidate got right")
    mcnemar: float = Field(description="exact, one-sided, against the candidate")


class Family(_Record):
    """A family's loss in semantics, all cycles together."""

    family: str
    loss: float
    p: float = Field(description="of a loss at all, adjusted by Holm over the families")


class Control(_Record):
    """A/A: one metric of the production backend against itself, all cycles together."""

    metric: str
    loss: Number
    p: Number = Field(description="two-sided, adjusted by Holm over the metrics")


class Questions(_Record):
    """The summary's two questions, with the numbers that answer them."""

    plateau: bool = Field(description="the production lane is at a plateau")
    plateau_why: str
    decisive: bool = Field(description="the candidate wins decisively")
    decisive_why: str


class Verdict(_Record):
    """The whole judgement."""

    schema_version: Literal[1] = 1
    twostack: str
    decision: Decision
    exit_code: int
    reasons: tuple[str, ...] = Field(min_length=1)
    binding: Binding | None = Field(description="what it would hold for; null where the cycles do not agree on it")
    cycles: tuple[str, ...]
    tasks: int = Field(description="of the suite")
    tasks_needed: int | None = Field(default=None, description="HOLD: about so many tasks would decide")
    seeds_needed: int | None = Field(default=None, description="HOLD: no number of tasks would, but so many seeds a cycle")
    invalid: tuple[str, ...] = Field(default=(), description="why it can't be judged")
    vetoes: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    flips: tuple[Flips, ...] = ()
    families: tuple[Family, ...] = ()
    control: tuple[Control, ...] = ()
    questions: Questions | None = None
    rule_sha256: str
    evidence: dict[str, str] = Field(description="file that was judged -> its SHA-256")


def write(verdict: Verdict, path: Path) -> None:
    """Writes the verdict as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(verdict.model_dump_json(indent=2).encode() + b"\n")
