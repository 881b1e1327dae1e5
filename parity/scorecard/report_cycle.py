"""A run as a cycle of evidence: what `parity promote` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from contract.artifacts.promotion import Binding
from contract.errors import ContractError
from contract.reading import bytes_of, json_file
from parity.scorecard.conditions_training import Training
from parity.scorecard.cycle import BoolArray, Cycle, FloatArray, Gate, Lane, Scores, Trained
from parity.scorecard.event import Completion, Infra
from parity.scorecard.event_log import FILE, MAX_BYTES, read_events
from parity.scorecard.repair import Standing, standing
from parity.scorecard.report import episodes_of
from parity.scorecard.runner_folder import MANIFEST, SPEC, Manifest, read_run
from parity.scorecard.spec import Comparison
from parity.scorecard.spec_source import Scorecard


def cycle_of(folder: Path, *, gate: Path | None = None) -> Cycle:
    """The cycle of a run whose spec says what it compares.

    Args:
        gate: the record of `parity run --json --contract` for the candidate's contract.

    Raises:
        ContractError, ContractErrors: a file is not there or not sound, the spec compares nothing, or a condition's training is not known.
    """
    manifest, scorecard = read_run(folder)
    comparison = scorecard.spec.comparison
    if comparison is None:
        raise ContractError(
            str(folder / SPEC), got="no comparison", allowed="baseline and candidate", remedy="run a spec with a comparison"
        )
    events = read_events(folder / FILE)
    lanes = {name: _lane(condition, manifest, scorecard, events) for name, condition in comparison.lanes().items()}
    training = _training(manifest, comparison.candidate)
    spec = scorecard.spec
    evidence = {name: _sha256(folder / name) for name in (SPEC, MANIFEST, FILE)}
    return Cycle(
        name=manifest.cycle, binding=_binding(training, comparison, manifest), digest=training.parity_digest, gate=_gate(gate),
        max_attempts=spec.max_retries + 1, max_milliseconds=1000 * spec.budgets.request_seconds * (spec.max_retries + 1),
        tasks=tuple(task.id for task in scorecard.tasks), families=tuple(task.family for task in scorecard.tasks),
        baseline=lanes["baseline"], candidate=lanes["candidate"], control=lanes.get("control"), evidence=evidence,
    )  # fmt: skip


def _training(manifest: Manifest, condition: str) -> Training:
    found = manifest.conditions[condition].training
    if found is None:
        remedy = "score adapters that finetune train wrote, in the folders that it wrote; a fixture: add training.json"
        raise ContractError(f"condition {condition}", got="no word of how it was trained", allowed="a training manifest", remedy=remedy)
    return found


def _binding(training: Training, comparison: Comparison, manifest: Manifest) -> Binding:
    return Binding(
        stack=training.stack, packages=training.packages, base_sha256=training.base_sha256, base=training.base, graph=training.graph,
        objective=training.objective, suite=f"{comparison.suite} {manifest.suite_sha256}",
    )  # fmt: skip


def _lane(condition: str, manifest: Manifest, scorecard: Scorecard, events: Sequence[Completion | Infra]) -> Lane:
    training, facts = _training(manifest, condition), manifest.conditions[condition]
    hashes = {
        "base": training.base_sha256, "data": training.data_sha256, "generation": facts.generation_sha256, "runtime": facts.runtime_sha256,
        "spec": manifest.protocol_sha256, "suite": manifest.suite_sha256,
    }  # fmt: skip
    trained = tuple(Trained(**run.model_dump()) for run in training.runs)
    lost = [event for event in events if isinstance(event, Infra) and event.condition == condition]
    return Lane(
        stack=training.stack, packages=training.packages, trained=trained, hashes=hashes,
        nans=sum("NaN" in event.message for event in lost),
        scores=_scores(condition, scorecard, [run.seed for run in trained], events, {(event.task, event.seed) for event in lost}),
    )  # fmt: skip


def _scores(
    condition: str, scorecard: Scorecard, seeds: Sequence[int], events: Sequence[Completion | Infra], lost: set[tuple[str, int]]
) -> Scores:
    """Of every task for every seed, in the order of the seeds and tasks."""
    episodes, retries = episodes_of(condition, events), scorecard.spec.max_retries
    keys = [[(task.id, seed) for task in scorecard.tasks] for seed in seeds]
    ended = {key: found for key, found in episodes.items() if standing(found, retries) is not Standing.OPEN}

    def flags(of: Callable[[Completion], bool]) -> BoolArray:
        return np.array([[key in ended and of(ended[key][-1]) for key in row] for row in keys], dtype=np.bool_)

    def sums(of: Callable[[Completion], float]) -> FloatArray:
        return np.array([[float(sum(map(of, ended.get(key, ())))) for key in row] for row in keys], dtype=np.float64)

    success = flags(lambda last: last.scores.task_success)
    return Scores(
        complete=flags(lambda last: True),
        infra=np.array([[key in lost and key not in ended for key in row] for row in keys], dtype=np.bool_),
        syntax=flags(lambda last: last.scores.compile_pass_1), semantics=flags(lambda last: last.scores.semantic_task_success),
        success=success, strict=flags(lambda last: last.scores.strictness), stalled=flags(lambda last: last.scores.repair_stalled),
        valid=success, attempts=sums(lambda event: 1.0), milliseconds=sums(lambda event: event.latency_ms),
        tokens=sums(lambda event: event.tokens_out),
    )  # fmt: skip


def _gate(path: Path | None) -> Gate | None:
    if path is None:
        return None
    record = json_file(path, remedy="give what parity run --contract FILE --json wrote")
    contract, code = record.get("contract"), record.get("exit_code")
    digest = contract.get("digest") if isinstance(contract, dict) else None
    if not isinstance(digest, str) or not isinstance(code, int):
        raise ContractError(str(path), got="no run of a contract", allowed="what parity run --contract FILE --json wrote", remedy="give it")
    return Gate(digest=digest, exit_code=code)


def _sha256(path: Path) -> str:
    return hashlib.sha256(bytes_of(path, limit=MAX_BYTES)).hexdigest()
