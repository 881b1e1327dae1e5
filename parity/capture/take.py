"""`parity capture`: asks one stack everything that a run would ask of it, and writes down what it answers."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import Interrupted, UserError
from contract.worker import discover
from contract.worker.answers import RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity import selection, tally, workers
from parity.capture import store
from parity.capture.recording import RecordingSource
from parity.capture.store import CheckIndex, Index
from parity.cells import Cell, Device
from parity.checks.check import Answered, Case, Check
from parity.engine import Engine
from parity.judge.verdict import Comparison
from parity.options import Options, Progress
from parity.profiles import FIXED_SEED, PROFILES, Profile
from parity.report.record import Result, Status


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a capture holds now.

    asked, kept:  requests that were asked now, and those that lay there already
    failed:       how many of them have an error for an answer
    missing:      why something that was asked for is not there
    """

    index: Index
    examples: int
    asked: int
    kept: int
    failed: int
    size: int
    missing: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """3 where a request has no answer, 4 where something that was asked for is missing, else 0."""
        return 3 if self.failed else 4 if self.missing else 0


def take(options: Options, folder: Path, progress: Progress, known: dict[str, StackInfo] | None = None) -> Taken:
    """Captures the one stack of `options` into a folder; goes on where a capture of the same was interrupted.

    Args:
        known: stacks by name; those that are there, unless given.

    Raises:
        UserError: a usage error, something missing, or an unfit environment; a folder that holds something else.
        HarnessError: the worker did not come up.
        Interrupted: Ctrl-C; the folder is whole up to there.
    """
    checks = selection.select_checks(options.tiers, options.checks, options.model)
    selection.require_sound(options.model, checks)
    chosen = selection.select_stacks(discover.discover() if known is None else known, options.stacks, options.devices or {})
    selection.require_stacks_of_mutants(options.mutants, chosen, whole=False)
    (name,) = chosen
    before = _before(folder)
    progress.doing(f"starting {name}")
    with workers.started(chosen, options.mutants) as processes:
        (device,) = workers.devices(chosen, processes)
        index = _index(options, device, processes[name], needs_model=selection.needs_model(checks), before=before)
        folder.mkdir(parents=True, exist_ok=True)
        store.write_index(folder, index)
        source = RecordingSource(folder, processes[name])
        try:
            index = _ask(index, checks, device, source, processes[name], folder, progress)
        except KeyboardInterrupt:
            done = len(store.read_index(folder).checks)
            raise Interrupted(f"interrupted; {folder} is whole up to there ({done} checks); the same command goes on") from None
    files = list(folder.glob("*/*.safetensors"))
    return Taken(
        index=index, examples=sum(one.examples for one in index.checks.values()), asked=source.asked, kept=source.kept,
        failed=source.failed, size=sum(path.stat().st_size for path in [*files, folder / store.INDEX]),
        missing=tuple(f"{check_id}: {one.missing}" for check_id, one in index.checks.items() if one.missing),
    )  # fmt: skip


def _ask(
    index: Index, checks: Sequence[Check], device: Device, source: RecordingSource, process: StackProcess, folder: Path, progress: Progress
) -> Index:
    """Asks each check; the index is written after each."""
    profile: Profile = PROFILES[index.profile]
    own = {check.id: cells_of(check, device) for check in checks}
    engine = Engine(
        {index.stack: process}, {index.stack: device.info.capabilities}, profile=profile, seed=index.seed, rerun="", statistical=0,
        sources={index.stack: source}, on_example=progress.step, doing=progress.doing,
    )  # fmt: skip
    progress.total(sum(profile.drawn(check) + profile.fixed(check) for check in checks if own[check.id]))
    for check in checks:
        if own[check.id]:
            progress.doing(f"{check.id}: {check.title}")
            found = _indexed(engine.run(check, own[check.id]), folder, check)
            index = index.model_copy(update={"checks": {**index.checks, check.id: found}})
            store.write_index(folder, index)
    index = index.model_copy(update={"complete": True})
    store.write_index(folder, index)
    return index


def _indexed(results: Sequence[Result], folder: Path, check: Check) -> CheckIndex:
    missing = [result.reason for result in results if result.status is Status.NOT_COVERED and result.reason != tally.NOTHING_COMPARED]
    return CheckIndex(examples=len(list((folder / check.id).glob("*.safetensors"))), missing=missing[0] if missing else "")


def cells_of(check: Check, device: Device) -> list[Cell]:
    """Every plan of a check that the stack takes part in, with another stack or without, as a cell that nobody judges."""
    return [
        Cell(
            check=check, question=plan.question, dtype=plan.dtype, stacks=(device.info.name,), devices=(device.name,),
            plan=dataclasses.replace(plan, judge=_unjudged, ahead=None),
        )
        for plan in check.plans
        if matrix.takes_part(plan, device) and not matrix.unable(check, plan, device)
    ]  # fmt: skip


def _unjudged(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    return []


def _before(folder: Path) -> Index | None:
    """The capture that the folder holds already."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that is not there yet, or empty, or a capture that is to go on")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / store.INDEX).exists():
        raise UserError(f"{folder} holds other files; give a folder that is not there yet, or empty, or a capture that is to go on")
    return store.read_index(folder)


def _index(options: Options, device: Device, process: StackProcess, *, needs_model: bool, before: Index | None) -> Index:
    """The capture's index before the first check.

    Raises:
        UserError: the folder holds a capture of something else.
    """
    profile = PROFILES[options.profile]
    seed = before.seed if before is not None and options.seed is None else options.seed
    info = device.info
    index = Index(
        twostack=importlib.metadata.version("twostack"), draws=store.draws(),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
        stack=info.name, device=device.name, capabilities=info.capabilities, dtypes=tuple(sorted(device.dtypes)),
        versions=info.told_versions(), probe=_probe(process), profile=options.profile,
        seed=seed if seed is not None else secrets.randbits(32) if profile.random_seed else FIXED_SEED,
        model=options.model if needs_model else "", mutants=options.mutants, tiers=options.tiers, only=options.checks,
    )  # fmt: skip
    if before is not None:
        _require_same(before, index)
        index = index.model_copy(update={"checks": before.checks})
    return index


def _require_same(before: Index, index: Index) -> None:
    for name in ("stack", "device", "twostack", "draws", "capabilities", "dtypes", "versions", "profile", "seed", "model", "mutants",
                 "tiers", "only"):  # fmt: skip
        was, now = getattr(before, name), getattr(index, name)
        if was != now:
            told = "" if name == "capabilities" else f": {_spelt(was)}, now {_spelt(now)}"
            raise UserError(f"--out holds a capture with another {name}{told}; give another folder, or the same command to go on with it")


def _spelt(value: object) -> str:
    """As a user gives it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value) or "none"


def _probe(process: StackProcess) -> dict[str, object]:
    """What the stack says of its device; nothing where it can't say."""
    try:
        return process.request("probe").values
    except RequestFailed:
        return {}
