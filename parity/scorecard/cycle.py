"""A cycle: what two backends, trained on the same data from the same adapters, scored on the same suite.

Legend: S training seeds, T tasks. Arrays of a lane's scores are [S, T], in the order of `Lane.trained` and `Cycle.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from contract.artifacts.promotion import Binding

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

LaneName = Literal["baseline", "candidate", "control"]
LANES: tuple[LaneName, ...] = ("baseline", "candidate", "control")
"""The production backend, the one that may be promoted, and the production backend trained and scored a second time (A/A)."""

METRICS = ("syntax", "semantics", "stall_rate", "attempts", "tokens")
"""What the candidate must not be worse at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Outcomes, [S, T]; where not `complete`, the other values mean nothing.

    Attributes:
        complete: the task was run to its end: accepted, stalled, or out of retries.
        infra: it was not, since a server, a worker or the machine failed.
        syntax: the first attempt's answer parses (compile_pass_1).
        semantics: the last attempt's answer does what was asked (semantic_task_success).
        success: the last attempt's answer passes all validators (task_success).
        strict: the last attempt's answer is strict: no fence, no preface.
        stalled: the same set of errors came twice.
        valid: some attempt was accepted.
        attempts: the number of the attempt that was accepted, from 1; where none was, how many were made.
        milliseconds: until the accepted attempt's end; where none was, until the last one's.
        tokens: written by the model, over all attempts.
    """

    complete: BoolArray
    infra: BoolArray
    syntax: BoolArray
    semantics: BoolArray
    success: BoolArray
    strict: BoolArray
    stalled: BoolArray
    valid: BoolArray
    attempts: FloatArray
    milliseconds: FloatArray
    tokens: FloatArray

    def __post_init__(self) -> None:
        shapes = {getattr(self, field.name).shape for field in fields(self)}
        assert len(shapes) == 1, f"scores of several shapes: {shapes}"
        assert len(next(iter(shapes))) == 2, "scores are [S, T]"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training run.

    Attributes:
        seed: pairs it with the other lanes' run of the same seed.
        initial_sha256: of the initial adapter, before the first step.
        order_sha256: of the order of the training samples.
        adapter_sha256: of the trained adapter that was scored.
    """

    seed: int
    initial_sha256: str
    order_sha256: str
    adapter_sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Lane:
    """One backend in one cycle.

    Attributes:
        stack: that trained.
        packages: distribution -> version, as a promotion's binding has them.
        trained: a training run each, in the order of the scores' first axis.
        hashes: name -> SHA-256 of what must be the same in every lane: data, base, tokenizer, spec, suite, runtime, generation.
        escapes: sandbox escapes by this lane's answers.
        nans: NaN or infinities in its training or scoring.
        parity_breaks: disagreements between the stacks that showed within the cycle, as of an adapter that scores otherwise when the
            other stack loads it.
    """

    stack: str
    packages: Mapping[str, str]
    trained: tuple[Trained, ...]
    hashes: Mapping[str, str]
    escapes: int = 0
    nans: int = 0
    parity_breaks: int = 0
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The parity gate's run: whose parity digest (contract.run.digest), and how it ended (exit code of `parity run`)."""

    digest: str
    exit_code: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Cycle:
    """One cycle of evidence.

    Attributes:
        name: as reports call it.
        binding: of the candidate: what a promotion would hold for.
        digest: the parity digest of the candidate's runs.
        gate: the parity gate's run; None where there was none.
        canaries_failed: tasks whose own reference solution did not pass.
        max_attempts: of the repair loop, and the horizon of restricted attempts.
        max_milliseconds: a task's budget of time, and the horizon of restricted times.
        tasks, families: names, a task each; T of each.
        baseline, candidate: the lanes that are compared.
        control: the production backend again; None where it was not run.
        evidence: file -> its SHA-256.
        changed: files of the evidence that no longer have their SHA-256.
    """

    name: str
    binding: Binding
    digest: str
    gate: Gate | None
    canaries_failed: tuple[str, ...] = ()
    max_attempts: int
    max_milliseconds: float
    tasks: tuple[str, ...]
    families: tuple[str, ...]
    baseline: Lane
    candidate: Lane
    control: Lane | None
    evidence: Mapping[str, str]
    changed: tuple[str, ...] = ()

    def lanes(self) -> dict[LaneName, Lane]:
        """Those that there are, by name."""
        found: dict[LaneName, Lane | None] = {"baseline": self.baseline, "candidate": self.candidate, "control": self.control}
        return {name: lane for name, lane in found.items() if lane is not None}
