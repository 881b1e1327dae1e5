"""What a run came to: a summary for each condition, the seed's fields, and what was lost to infra errors beside them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from contract.artifacts.record import Name, Record, Sha256
from parity.scorecard.event import Completion, Count, Infra
from parity.scorecard.event_log import FILE, read_events
from parity.scorecard.repair import Standing, standing
from parity.scorecard.runner_folder import Manifest, read_run
from parity.scorecard.spec import AnyCondition
from parity.scorecard.spec_source import Scorecard

RESCORED = "rescored.jsonl"

Rate = Annotated[float, Field(ge=0, le=1)] | None
"""A share of the tasks that were run to their end; none where there was none."""
Number = Annotated[float, Field(ge=0)] | None


class Family(Record):
    """The tasks of one family."""

    family: Name
    episodes: Count
    task_success: Rate


class Summary(Record):
    """One condition over all tasks and seeds. An episode is one task for one seed, run to its end: passed, stalled, or out of retries.

    compile_pass_1, compile_pass_n: the first answer's syntax is sound, the last one's. canonical, strictness, anti_stub, trivial, richness,
    task_success, semantic_task_success: of the last answer. repair_depth_mean: over passed episodes. time_to_first_valid_ms_p50: the
    median over all episodes, those that never passed later than any that did; none where fewer than half passed. latency: of all requests
    (a request carries `batch` prompts). unfinished: episodes without an end; infra_errors: attempts lost, by what happened.
    generated_tokens_per_second: tokens written a second of the requests' time.
    """

    condition: Name
    backend: Name
    episodes: Count
    unfinished: Count
    infra_errors: dict[str, Count]
    compile_pass_1: Rate
    compile_pass_n: Rate
    canonical_pass: Rate
    strictness: Rate
    task_success: Rate
    semantic_task_success: Rate
    anti_stub_pass: Rate
    trivial_output: Rate
    richness_mean: Rate
    placeholder_hits: Count
    stall_rate: Rate
    repair_depth_mean: Number
    attempts_mean: Number
    time_to_first_valid_ms_p50: Number
    latency_ms_p50: Number
    latency_ms_p95: Number
    tokens_in: Count
    tokens_out: Count
    generated_tokens_per_second: Number
    families: Annotated[tuple[Family, ...], Field(strict=False)]


class Report(Record):
    """All conditions of a run. rescored: of answers judged again by `parity scorecard rescore`."""

    schema_version: Literal[1] = 1
    cycle: Name
    spec_sha256: Sha256
    protocol_sha256: Sha256
    suite_sha256: Sha256
    rescored: bool
    summaries: Annotated[tuple[Summary, ...], Field(strict=False)]


Episodes = Mapping[tuple[str, int], Sequence[Completion]]
"""Attempts by task and seed."""


def report_of(folder: Path, *, rescored: bool = False) -> Report:
    """The report of a run's folder.

    Raises:
        ContractError, ContractErrors: a file of it is not there or not sound.
    """
    manifest, scorecard = read_run(folder)
    events = read_events(folder / (RESCORED if rescored else FILE))
    return summarise(manifest, scorecard, events, rescored=rescored)


def summarise(manifest: Manifest, scorecard: Scorecard, events: Sequence[Completion | Infra], *, rescored: bool = False) -> Report:
    """The report of a run's events."""
    summaries = tuple(_summary(condition, scorecard, events) for condition in scorecard.spec.conditions)
    return Report(
        cycle=manifest.cycle, spec_sha256=manifest.spec_sha256, protocol_sha256=manifest.protocol_sha256,
        suite_sha256=manifest.suite_sha256, rescored=rescored, summaries=summaries,
    )  # fmt: skip


def episodes_of(condition: str, events: Sequence[Completion | Infra]) -> dict[tuple[str, int], list[Completion]]:
    """A condition's attempts by task and seed, in their order."""
    found: dict[tuple[str, int], list[Completion]] = {}
    for event in events:
        if isinstance(event, Completion) and event.condition == condition:
            found.setdefault((event.task, event.seed), []).append(event)
    for attempts in found.values():
        attempts.sort(key=lambda event: event.attempt)
    return found


def _summary(condition: AnyCondition, scorecard: Scorecard, events: Sequence[Completion | Infra]) -> Summary:
    spec = scorecard.spec
    episodes = episodes_of(condition.id, events)
    ended = {key: attempts for key, attempts in episodes.items() if standing(attempts, spec.max_retries) is not Standing.OPEN}
    last = [attempts[-1] for attempts in ended.values()]
    every = [event for attempts in episodes.values() for event in attempts]
    latencies = sorted(event.latency_ms for event in every)
    seconds = sum(event.latency_ms / event.batch for event in every) / 1000
    lost = Counter(event.error for event in events if isinstance(event, Infra) and event.condition == condition.id)

    def rate(true: Callable[[Completion], float]) -> float | None:
        return _mean([float(true(event)) for event in last])

    return Summary(
        condition=condition.id, backend=condition.backend, episodes=len(ended),
        unfinished=len(scorecard.tasks) * len(spec.seeds) - len(ended), infra_errors=dict(sorted(lost.items())),
        compile_pass_1=rate(lambda event: event.scores.compile_pass_1), compile_pass_n=rate(lambda event: event.scores.compile_pass_n),
        canonical_pass=rate(lambda event: event.scores.canonical_pass), strictness=rate(lambda event: event.scores.strictness),
        task_success=rate(lambda event: event.scores.task_success),
        semantic_task_success=rate(lambda event: event.scores.semantic_task_success),
        anti_stub_pass=rate(lambda event: event.scores.anti_stub_pass), trivial_output=rate(lambda event: event.scores.trivial_output),
        richness_mean=rate(lambda event: event.scores.richness), placeholder_hits=sum(event.scores.placeholder_hits for event in last),
        stall_rate=rate(lambda event: event.scores.repair_stalled),
        repair_depth_mean=_mean([float(event.scores.repair_depth) for event in last if event.scores.task_success]),
        attempts_mean=_mean([float(event.attempt) for event in last]), time_to_first_valid_ms_p50=_median_censored(last),
        latency_ms_p50=_quantile(latencies, 0.5), latency_ms_p95=_quantile(latencies, 0.95),
        tokens_in=sum(event.tokens_in for event in every), tokens_out=sum(event.tokens_out for event in every),
        generated_tokens_per_second=sum(event.tokens_out for event in every) / seconds if seconds else None,
        families=_families(last),
    )  # fmt: skip


def _families(last: Sequence[Completion]) -> tuple[Family, ...]:
    by_family: dict[str, list[float]] = {}
    for event in last:
        by_family.setdefault(event.family, []).append(float(event.scores.task_success))
    return tuple(
        Family(family=name, episodes=len(found), task_success=statistics.fmean(found)) for name, found in sorted(by_family.items())
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _quantile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them does not exceed (Hyndman and Fan's first definition)."""
    return ascending[max(0, -int(-share * len(ascending) // 1) - 1)] if ascending else None


def _median_censored(last: Sequence[Completion]) -> float | None:
    """The median time to the first valid answer, episodes without one being later than any."""
    times = sorted(time for event in last if (time := event.scores.time_to_first_valid_ms) is not None)
    needed = -(-len(last) // 2)
    return times[needed - 1] if last and len(times) >= needed else None
