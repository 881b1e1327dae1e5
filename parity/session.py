"""A run from its options to its record: who is asked, what is asked, and what came of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contract.errors import EnvironmentUnfit, MissingError, UserError
from contract.model import checkpoint
from contract.worker import discover
from contract.worker.answers import HarnessError, RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Cell, Device
from parity.checks import graph, registry
from parity.checks.check import Check
from parity.engine import Engine, busy_seconds
from parity.judge import confidence, waivers
from parity.judge.waivers import Waiver
from parity.mutants import catalogue
from parity.profiles import FIXED_SEED, PROFILES, Profile
from parity.report.record import Result, Run, StackRecord, Status, Timing, exit_code

REQUEST_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; empty selections mean everything."""

    tiers: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    devices: Mapping[str, str] | None = None
    profile: str = "ci"
    seed: int | None = None
    time_budget: float | None = None
    mutants: tuple[str, ...] = ()
    model: str = graph.MODEL
    waiver_file: Path = waivers.FILE


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells while it goes on: what it does now, how many examples it will ask, and each one asked."""

    doing: Callable[[str], None] = lambda text: None
    total: Callable[[int], None] = lambda examples: None
    step: Callable[[], None] = lambda: None


def select_checks(tiers: Sequence[str], ids: Sequence[str], model: str = graph.MODEL) -> tuple[Check, ...]:
    """The checks of some tiers and ids.

    Raises:
        UserError: an unknown tier or check.
    """
    every = registry.checks(model)
    for tier in tiers:
        if tier not in registry.TIERS:
            raise UserError(f"there is no tier {tier!r}; allowed: {', '.join(registry.TIERS)}")
    known = [check.id for check in every]
    for check_id in ids:
        if check_id not in known:
            raise UserError(f"there is no check {check_id!r}; allowed: {', '.join(known)}")
    for check in every:
        if check.id in ids and tiers and check.tier not in tiers:
            raise UserError(f"check {check.id} is of tier {check.tier}; --tier names {', '.join(tiers)}")
    return tuple(check for check in every if (not tiers or check.tier in tiers) and (not ids or check.id in ids))


def select_stacks(known: Mapping[str, StackInfo], names: Sequence[str], devices: Mapping[str, str]) -> dict[str, tuple[StackInfo, str]]:
    """Stack -> what it is, and the device to run it on.

    Raises:
        UserError: an unknown stack or device.
        MissingError: a stack that is known and not installed.
    """
    for name in (*names, *devices):
        if name not in known:
            raise UserError(f"there is no stack {name!r}; allowed: {', '.join(known) or 'none is installed'}")
    chosen = {}
    for name in names or known:
        info = known[name]
        device = devices.get(name, info.capabilities.devices[0])
        if device not in info.capabilities.devices:
            raise UserError(f"stack {name} has no device {device!r}; allowed: {', '.join(info.capabilities.devices)}")
        chosen[name] = (info, device)
    for name in devices:
        if name not in chosen:
            raise UserError(f"--device names {name}, which --stacks leaves out; add it there or drop it here")
    for info, _ in chosen.values():
        info.require_installed()
    return chosen


@contextmanager
def started(chosen: Mapping[str, tuple[StackInfo, str]], mutants: Sequence[str] = ()) -> Iterator[dict[str, StackProcess]]:
    """The chosen stacks, each in a process of its own, up and ready; ended when the block ends.

    Raises:
        EnvironmentUnfit: a stack says that this machine can't run it.
        MissingError: a stack's device is not here.
        HarnessError: a worker did not come up.
    """
    planted = [catalogue.read(name) for name in mutants]
    processes = {
        name: StackProcess(
            name, info.command, device, request_seconds=REQUEST_SECONDS,
            mutations=[mutant.mutation for mutant in planted if mutant.stack == name],
        )
        for name, (info, device) in chosen.items()
    }  # fmt: skip
    pool = ThreadPoolExecutor(max_workers=max(1, len(processes)))
    try:
        for starting in [pool.submit(_start, process) for process in processes.values()]:
            starting.result()
        yield processes
    except BaseException:
        for process in processes.values():
            process.kill()  # one that is still starting would keep the others, and the user, waiting
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for process in processes.values():
            process.close()


def _start(process: StackProcess) -> None:
    try:
        process.start()
    except RequestFailed as error:
        if error.error_class == "EnvironmentUnfit":
            raise EnvironmentUnfit(f"{process.name}: {error.message}") from None
        if error.error_class in ("NotSupported", "MissingError"):
            raise MissingError(f"{process.name} on {process.device}: {error.message}") from None
        raise HarnessError(f"{process.name} could not make its stack: {error.error_class}: {error.message}") from None


def run(options: Options, progress: Progress) -> Run:
    """Runs what was asked for and returns its record.

    Raises:
        UserError: a usage error, something missing, or an unfit environment (see its subclasses).
        HarnessError: a worker did not come up.
    """
    began, started_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
    profile = PROFILES[options.profile]
    seed = options.seed if options.seed is not None else secrets.randbits(32) if profile.random_seed else FIXED_SEED
    checks = select_checks(options.tiers, options.checks, options.model)
    require_sound(options.model, checks)
    chosen = select_stacks(discover.discover(), options.stacks, options.devices or {})
    require_stacks_of_mutants(options.mutants, chosen)
    accepted, recorded = waivers.read(options.waiver_file), matrix.read_coverage()
    progress.doing("starting the stacks")
    with started(chosen, options.mutants) as processes:
        ready = time.monotonic()
        here = devices(chosen, processes)
        cells = matrix.matrix(checks, here)
        engine = Engine(
            processes, {name: info.capabilities for name, (info, _) in chosen.items()}, profile=profile, seed=seed,
            rerun=_rerun(options, seed),
            statistical=_statistical(cells, profile), mutants=options.mutants,
            deadline=None if options.time_budget is None else began + options.time_budget, on_example=progress.step, doing=progress.doing,
        )  # fmt: skip
        progress.total(sum(profile.drawn(check) + profile.fixed(check) for check in checks))
        results = []
        for check in checks:
            progress.doing(f"{check.id}: {check.title}")
            results += engine.run(check, [cell for cell in cells if cell.check is check and cell.plan is not None])
        asked = time.monotonic()
    results += [_explained(cell) for cell in cells if cell.plan is None]
    results += _lost(recorded, cells, here, options)
    final, problems = _waive(results, accepted, options, set(chosen), {check.id for check in checks}, started_at.date())
    return Run(
        twostack=importlib.metadata.version("twostack"), started=started_at.isoformat(timespec="seconds"),
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
        tiers=tuple(sorted({check.tier for check in checks})), profile=options.profile, seed=seed, false_alarm=confidence.FALSE_ALARM,
        mutants=options.mutants, model=options.model if _needs_model(checks) else "",
        stacks=tuple(_stack_record(info, device) for info, device in chosen.values()),
        results=final, problems=problems, exit_code=exit_code(final, problems),
        timing=Timing(
            wall=asked - ready, start=ready - began, busy=busy_seconds(engine.busy),
            by_stack={name: busy_seconds({name: intervals}) for name, intervals in engine.busy.items()},
        ),
    )  # fmt: skip


def _rerun(options: Options, seed: int) -> str:
    """The flags of `parity run` that draw the same inputs again."""
    model = "" if options.model == graph.MODEL else f" --model {shlex.quote(options.model)}"
    return f"--profile {options.profile} --seed {seed}{model}"


def require_sound(model: str, checks: Sequence[Check]) -> None:
    """Refuses a checkpoint that tier C could not mean, before anything is started; one that is not here is the check's to say.

    Raises:
        UserError: a folder that is no sound checkpoint, an architecture or a config field that is not honoured, NaN in a weight.
    """
    if not _needs_model(checks):
        return
    try:
        checkpoint.require_finite(checkpoint.locate(model))
    except MissingError:
        if model != graph.MODEL:
            raise


def _needs_model(checks: Sequence[Check]) -> bool:
    return any(check.id in graph.OF_A_MODEL for check in checks)


def coverage_of_all() -> dict[str, str]:
    """The matrix of every check and every known stack on its default device."""
    devices = [
        Device(info=info, name=info.capabilities.devices[0], dtypes=_declared_dtypes(info)) for info in discover.installed().values()
    ]
    return matrix.coverage(matrix.matrix(registry.CHECKS, devices))


def devices(chosen: Mapping[str, tuple[StackInfo, str]], processes: Mapping[str, StackProcess]) -> list[Device]:
    """A default device has every dtype that its stack declares; any other is asked what it has."""
    found = []
    for name, (info, device) in chosen.items():
        dtypes = _declared_dtypes(info)
        if device != info.capabilities.devices[0]:
            dtypes &= _probed_dtypes(processes[name])
        found.append(Device(info=info, name=device, dtypes=dtypes))
    return found


def _probed_dtypes(process: StackProcess) -> frozenset[str]:
    try:
        dtypes = process.request("probe").values.get("dtypes")
    except RequestFailed as error:
        raise HarnessError(f"{process.name} on {process.device} does not say what it can do: {error.message}") from None
    if not isinstance(dtypes, list):
        raise HarnessError(f"{process.name} on {process.device} answered probe without a list of dtypes; see docs/protocol.md")
    return frozenset(map(str, dtypes))


def _declared_dtypes(info: StackInfo) -> frozenset[str]:
    graphs = info.capabilities.graphs
    of_graphs = () if graphs is None else (*graphs.architectures.values(), graphs.proxy)
    return frozenset(dtype for dtypes in (*info.capabilities.operations.values(), *of_graphs) for dtype in dtypes)


def require_stacks_of_mutants(names: Sequence[str], chosen: Mapping[str, object]) -> None:
    """A mutant whose stack does not run would plant nothing, and the run would look as if it had survived.

    Raises:
        UserError: such a mutant, one that there is none of, or one that is named twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"--mutant names {', '.join(names)}: each can be planted once; leave the second one out")
    for name in names:
        stack = catalogue.read(name).stack
        if stack not in chosen:
            raise UserError(f"mutant {name} is of the stack {stack}, which this run leaves out; add it to --stacks, or drop the mutant")


def _statistical(cells: Sequence[Cell], profile: Profile) -> int:
    """How many statistical comparisons a run may make: fixed cases and drawn ones, of every cell that has any."""
    count = 0
    for cell in cells:
        if cell.plan is not None and cell.plan.statistical:
            count += cell.plan.statistical * (profile.drawn(cell.check) + profile.fixed(cell.check))
    return count


def _explained(cell: Cell) -> Result:
    return _without_answer(cell.check.id, cell.check.tier, cell.check.title, cell, Status.NOT_APPLICABLE, cell.reason)


def _without_answer(check_id: str, tier: str, title: str, cell: Cell, status: Status, reason: str) -> Result:
    return Result(
        id=check_id, tier=tier, title=title, stacks=cell.stacks, question=cell.question, device=cell.devices, dtype=cell.dtype,
        status=status, reason=reason,
    )  # fmt: skip


def _lost(recorded: Mapping[str, str], cells: Sequence[Cell], devices: Sequence[Device], options: Options) -> list[Result]:
    """Cells of coverage.json that were asked for and that this run does not ask: no check does, or a stack declares too little."""
    results, reasons = [], matrix.coverage(cells)
    for key in matrix.lost(recorded, cells, devices):
        check_id, question, dtype, who = key.split(" | ")
        tier = check_id.partition(".")[0].upper()
        if (options.tiers and tier not in options.tiers) or (options.checks and check_id not in options.checks):
            continue
        pairs = [one.split(" on ") for one in who.split(" + ")]
        results.append(
            Result(
                id=check_id, tier=tier, title="a cell of coverage.json", stacks=tuple(stack for stack, _ in pairs), question=question,
                device=tuple(device for _, device in pairs), dtype=dtype, status=Status.NOT_COVERED,
                reason=_why_lost(reasons.get(key, ""), options),
            )
        )  # fmt: skip
    return results


def _why_lost(reason: str, options: Options) -> str:
    if not reason:
        return "coverage.json lists this cell and no check asks it; restore the check, or record the loss: parity coverage --write"
    if options.model != graph.MODEL:
        return f"{reason}; leave that stack out (--stacks), or take another --model"
    return f"{reason}; coverage.json lists this cell: restore it, or record the loss: parity coverage --write"


def _waive(
    results: Sequence[Result], accepted: Sequence[Waiver], options: Options, stacks: set[str], checks: set[str], today: datetime.date
) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """Applies the waivers; an expired one accepts nothing, and both an expired and an unused one are problems."""
    used: set[Waiver] = set()
    final = []
    for result in results:
        match = next((one for one in accepted if one.covers(result.id, result.stacks) and today <= one.expires), None)
        if match is not None and result.status is Status.FAIL:
            used.add(match)
            result = result.model_copy(
                update={"status": Status.WAIVED, "reason": f"{match.reason} (until {match.expires}); {result.reason}"}
            )
        final.append(result)
    known_checks, known_stacks = {check.id for check in registry.CHECKS}, set(discover.discover())
    strangers = [one for one in accepted if one.check not in known_checks or one.stack not in known_stacks]
    relevant = [one for one in accepted if one.check in checks and one.stack in stacks]
    problems = [
        f"the waiver of {one.check} for {one.stack} names a check or a stack that there is none of; correct it" for one in strangers
    ]
    problems += [f"the waiver of {one.check} for {one.stack} expired on {one.expires}" for one in relevant if today > one.expires]
    problems += [
        f"the waiver of {one.check} for {one.stack} is not used; remove it" for one in relevant if today <= one.expires and one not in used
    ]
    return tuple(final), tuple(problems)


def _stack_record(info: StackInfo, device: str) -> StackRecord:
    versions = {package: discover.version(package) or "not installed" for package in info.capabilities.packages}
    return StackRecord(name=info.name, device=device, lane=info.capabilities.lane, versions=versions)
