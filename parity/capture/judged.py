"""`parity compare`: judges what captures hold, as a run on their stacks would; no stack needs to be here."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from contract.errors import UserError
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import selection, session, unasked, waiving
from parity.capture import store
from parity.capture.recording import RecordedSource
from parity.capture.store import Index
from parity.cells import Cell, Device
from parity.checks import graph, registry
from parity.engine import Engine
from parity.judge import confidence, waivers
from parity.options import Options, Progress
from parity.profiles import PROFILES
from parity.report.record import Result, Run, StackRecord, Timing, exit_code
from parity.sources import Source

NOT_LOOKED_FOR = (
    "Of captures no failure is shrunk, and no operation at fault looked for: run the command after 'again' where the stacks are; of tier "
    "C, parity bisect CHECK names the operation."
)
"""What compare does not do, and what does."""

_SAME = ("profile", "seed")
"""What two captures must have alike, or they hold answers to other inputs."""


def judge(folders: Sequence[Path], progress: Progress, *, waiver_file: Path = waivers.FILE) -> Run:
    """The record of what captures hold: the same checks, cases, judges and verdicts as of a run on their stacks.

    A failure is neither shrunk nor bisected: that takes the stack. What is missing in a capture is not covered.

    Raises:
        UserError: a folder that holds no sound capture; captures of one stack, or of other inputs.
    """
    began, started_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
    indexes = _read(folders)
    first = _require_comparable(indexes)
    tiers, only = _selection(list(indexes.values()))
    options = Options(
        tiers=tiers, checks=only, stacks=tuple(index.stack for index in indexes.values()), profile=first.profile,
        seed=first.seed, mutants=tuple(dict.fromkeys(name for index in indexes.values() for name in index.mutants)),
        model=next((index.model for index in indexes.values() if index.model), graph.MODEL), waiver_file=waiver_file,
    )  # fmt: skip
    checks = selection.select_checks(options.tiers, options.checks, options.model)
    accepted, recorded = waivers.read(options.waiver_file), matrix.read_coverage()
    here = sorted((_device(index) for index in indexes.values()), key=lambda device: device.info.name)
    cells = matrix.matrix(checks, here)
    sources = {index.stack: RecordedSource(folder, index) for folder, index in indexes.items()}
    results = _results(cells, here, sources, options, progress)
    results += [unasked.explained(cell) for cell in cells if cell.plan is None]
    results += unasked.lost(recorded, cells, here, options)
    final, problems = waiving.apply(results, accepted, set(options.stacks), {check.id for check in checks}, started_at.date())
    return Run(
        twostack=importlib.metadata.version("twostack"), started=started_at.isoformat(timespec="seconds"),
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()} | _taken(indexes),
        tiers=tuple(sorted({check.tier for check in checks})), profile=options.profile, seed=first.seed,
        false_alarm=confidence.FALSE_ALARM, mutants=options.mutants, model=options.model if selection.needs_model(checks) else "",
        stacks=tuple(_stack_record(index) for index in sorted(indexes.values(), key=lambda index: index.stack)),
        results=final, problems=problems, exit_code=exit_code(final, problems),
        timing=Timing(wall=time.monotonic() - began, start=0.0, busy=0.0, by_stack={}),
    )  # fmt: skip


def _results(
    cells: Sequence[Cell], here: Sequence[Device], sources: dict[str, RecordedSource], options: Options, progress: Progress
) -> list[Result]:
    assert options.seed is not None
    profile, asked = PROFILES[options.profile], [cell for cell in cells if cell.plan is not None]
    checks = list({cell.check.id: cell.check for cell in asked}.values())
    recorded: dict[str, Source] = dict(sources)
    engine = Engine(
        {}, {device.info.name: device.info.capabilities for device in here}, profile=profile, seed=options.seed,
        rerun=session.rerun_flags(options, options.seed), statistical=session.statistical(cells, profile), mutants=options.mutants,
        sources=recorded, on_example=progress.step, doing=progress.doing,
    )  # fmt: skip
    progress.total(sum(profile.drawn(check) + profile.fixed(check) for check in checks))
    results = []
    for check in checks:
        progress.doing(f"{check.id}: {check.title}")
        results += engine.run(check, [cell for cell in asked if cell.check is check])
    return results


def _selection(indexes: Sequence[Index]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tiers and checks: what each capture was asked for; of two that differ, every check that is in one of them."""
    first, *others = [(index.tiers, index.only) for index in indexes]
    if all(other == first for other in others):
        return first
    chosen = {check.id for index in indexes for check in selection.select_checks(index.tiers, index.only)}
    return (), tuple(check.id for check in registry.CHECKS if check.id in chosen)


def _read(folders: Sequence[Path]) -> dict[Path, Index]:
    indexes: dict[Path, Index] = {}
    for folder in folders:
        if any(folder.resolve() == other.resolve() for other in indexes):
            raise UserError(f"{folder} is named twice; give a capture of each stack once")
        indexes[folder] = store.read_index(folder)
    return indexes


def _require_comparable(indexes: dict[Path, Index]) -> Index:
    (folder, first), *others = indexes.items()
    stacks = {first.stack: folder}
    for other, index in others:
        if index.stack in stacks:
            raise UserError(
                f"{stacks[index.stack]} and {other} both hold the stack {index.stack}; compare captures of two stacks, or of one stack in "
                "two environments with parity compare-env"
            )
        stacks[index.stack] = other
        for name in (*_SAME, *(("model",) if first.model and index.model else ())):
            was, now = getattr(first, name), getattr(index, name)
            if was != now:
                raise UserError(
                    f"{folder} was captured with {name} {was!r}, {other} with {now!r}: other inputs; capture both with the same flags "
                    f"(parity capture --profile {first.profile} --seed {first.seed} ...)"
                )
    return first


def _device(index: Index) -> Device:
    info = StackInfo(name=index.stack, command=(), capabilities=index.capabilities)
    return Device(info=info, name=index.device, dtypes=frozenset(index.dtypes))


def _stack_record(index: Index) -> StackRecord:
    return StackRecord(name=index.stack, device=index.device, lane=index.capabilities.lane, versions=index.versions)


def _taken(indexes: dict[Path, Index]) -> dict[str, str]:
    """Where and when each stack answered."""
    return {f"{index.stack} answered": f"{index.started}, {index.machine.get('system', '?')}" for index in indexes.values()}
