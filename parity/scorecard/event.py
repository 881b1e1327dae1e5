"""Events: one line an attempt, appended when it is done and never changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from contract.artifacts.record import Name, Record, Sha256

Count = Annotated[int, Field(ge=0, le=2**53)]
Milliseconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, order=True)
class Asked:
    """Which attempt: condition, task, seed, and its number from 1."""

    condition: str
    task: str
    seed: int
    attempt: int

    def event_id(self, *, spec: str, cycle: str) -> str:
        """SHA-256, in hexadecimal, of all that tells this attempt from any other.

        Args:
            spec: digest of what is asked, how and of whom (Scorecard.spec_sha256).
        """
        parts = [spec, cycle, self.condition, self.task, self.seed, self.attempt]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


class _Event(Record):
    event_id: Sha256
    condition: Name
    backend: Name
    family: Name
    task: Name
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    attempt: Annotated[int, Field(ge=1, le=2**31)]

    @property
    def asked(self) -> Asked:
        """Which attempt it was."""
        return Asked(condition=self.condition, task=self.task, seed=self.seed, attempt=self.attempt)


class Scores(Record):
    """How an answer was judged, and how its task stands after it.

    compile_pass_1: the first attempt's syntax was sound; compile_pass_n: this one's. task_success: syntax and semantics of every validator
    pass, so that the answer is accepted. semantic_task_success: the semantics do. repair_depth: attempts before this one. errors: what is
    fed back. repair_stalled: the same set of them came twice. time_to_first_valid_ms: of all attempts up to the accepted one; none until
    there is one. canonical_pass, strictness, placeholder_hits, trivial_output,
    richness, anti_stub_pass: of its form (parity.scorecard.validators.form).
    """

    compile_pass_1: bool
    compile_pass_n: bool
    repair_depth: Count
    canonical_pass: bool
    strictness: bool
    task_success: bool
    semantic_task_success: bool
    error_count: Count
    errors: Annotated[tuple[str, ...], Field(strict=False)]
    time_to_first_valid_ms: Milliseconds | None
    repair_stalled: bool
    placeholder_hits: Count
    trivial_output: bool
    richness: Annotated[float, Field(ge=0, le=1)]
    anti_stub_pass: bool


class Completion(_Event):
    """An answer came, and was judged.

    latency_ms: of the request that brought it; batch: how many prompts that request had. finish: stop, or length where max_new_tokens
    ended it.
    """

    kind: Literal["completion"] = "completion"
    answer: str
    finish: Literal["stop", "length", "unknown"]
    tokens_in: Count
    tokens_out: Count
    latency_ms: Milliseconds
    batch: Annotated[int, Field(ge=1)]
    scores: Scores


class Infra(_Event):
    """No answer came: a server, a worker or the machine failed. It is no failure of the task's, and may be asked again."""

    kind: Literal["infra"] = "infra"
    error: Literal["timeout", "refused", "dropped", "garbage", "rate_limited", "server_error", "worker"]
    message: str
    latency_ms: Milliseconds


Event = Annotated[Completion | Infra, Field(discriminator="kind")]
EVENT: TypeAdapter[Completion | Infra] = TypeAdapter(Event)
