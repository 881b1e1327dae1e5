"""A run from its options to its record: who is asked, what is asked, and what came of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import secrets
import shlex
import time
from collections.abc import Sequence

from contract.worker import discover
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import selection, unasked, waiving, workers
from parity.cells import Cell, Device
from parity.checks import graph, registry
from parity.engine import Engine, busy_seconds
from parity.judge import confidence, waivers
from parity.options import Options, Progress
from parity.profiles import FIXED_SEED, PROFILES, Profile
from parity.report.record import Run, StackRecord, Timing, exit_code


def run(options: Options, progress: Progress) -> Run:
    """Runs what was asked for and returns its record.

    Raises:
        UserError: a usage error, something missing, or an unfit environment (see its subclasses).
        HarnessError: a worker did not come up.
    """
    began, started_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
    profile = PROFILES[options.profile]
    seed = options.seed if options.seed is not None else secrets.randbits(32) if profile.random_seed else FIXED_SEED
    checks = selection.select_checks(options.tiers, options.checks, options.model)
    selection.require_sound(options.model, checks)
    chosen = selection.select_stacks(discover.discover(), options.stacks, options.devices or {})
    selection.require_stacks_of_mutants(options.mutants, chosen)
    accepted, recorded = waivers.read(options.waiver_file), matrix.read_coverage()
    progress.doing("starting the stacks")
    with workers.started(chosen, options.mutants) as processes:
        ready = time.monotonic()
        here = workers.devices(chosen, processes)
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
    results += [unasked.explained(cell) for cell in cells if cell.plan is None]
    results += unasked.lost(recorded, cells, here, options)
    final, problems = waiving.apply(results, accepted, set(chosen), {check.id for check in checks}, started_at.date())
    return Run(
        twostack=importlib.metadata.version("twostack"), started=started_at.isoformat(timespec="seconds"),
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
        tiers=tuple(sorted({check.tier for check in checks})), profile=options.profile, seed=seed, false_alarm=confidence.FALSE_ALARM,
        mutants=options.mutants, model=options.model if selection.needs_model(checks) else "",
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


def coverage_of_all() -> dict[str, str]:
    """The matrix of every check and every known stack on its default device."""
    devices = [
        Device(info=info, name=info.capabilities.devices[0], dtypes=workers.declared_dtypes(info)) for info in discover.installed().values()
    ]
    return matrix.coverage(matrix.matrix(registry.CHECKS, devices))


def _statistical(cells: Sequence[Cell], profile: Profile) -> int:
    """How many statistical comparisons a run may make: fixed cases and drawn ones, of every cell that has any."""
    count = 0
    for cell in cells:
        if cell.plan is not None and cell.plan.statistical:
            count += cell.plan.statistical * (profile.drawn(cell.check) + profile.fixed(cell.check))
    return count


def _stack_record(info: StackInfo, device: str) -> StackRecord:
    versions = {package: discover.version(package) or "not installed" for package in info.capabilities.packages}
    return StackRecord(name=info.name, device=device, lane=info.capabilities.lane, versions=versions)
