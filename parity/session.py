"""A run from its options to its record: who is asked, what is asked, and what came of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence

from contract.worker import discover
from contract.worker.discover import StackInfo
from parity import cells as matrix
from parity import jobs, selected, selection, unasked, waiving, workers
from parity.busy import busy_seconds
from parity.cells import Cell, Device
from parity.checks import graph, registry
from parity.engine import Engine
from parity.find.preserve import Keeper, Of
from parity.gating import contract_record
from parity.judge import confidence, waivers
from parity.options import Options, Progress
from parity.profiles import FIXED_SEED, PROFILES, Profile
from parity.report.record import Run, StackRecord, Timing, exit_code
from parity.rerunning import key_of


def run(options: Options, progress: Progress) -> Run:
    """Runs what was asked for and returns its record.

    Raises:
        UserError: a usage error, something missing, or an unfit environment (see its subclasses).
        HarnessError: a worker did not come up.
    """
    began, started_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
    profile = PROFILES[options.profile]
    seed = options.seed if options.seed is not None else secrets.randbits(32) if profile.random_seed else FIXED_SEED
    settled = selected.select(options, progress.doing)
    chosen, known, absent = settled.chosen, settled.known, settled.absent
    accepted, recorded = waivers.read(options.waiver_file), matrix.read_coverage()
    progress.doing("starting the stacks")
    own_run = settled.gated is not None
    count = 1 if own_run else min(options.jobs, len(jobs.groups(settled.checks)))
    with workers.sets(count, chosen, options.mutants, own_run=own_run) as sets:
        ready, processes = time.monotonic(), sets[0]
        here = workers.devices(chosen, processes)
        settled = selected.with_paths(settled, options, processes)
        checks, every = settled.checks, matrix.matrix(settled.checks, [*here, *(_on_default(known[name]) for name in absent)])
        if options.rerun is not None:
            every = [cell for cell in every if key_of(cell) in options.rerun.cells]
            checks = tuple(check for check in checks if any(cell.check is check for cell in every))
        cells = [cell for cell in every if not absent.keys() & set(cell.stacks)]
        engines = [
            Engine(
                processes, {name: info.capabilities for name, (info, _) in chosen.items()}, profile=profile, seed=seed,
                rerun=rerun_flags(options, seed), reproducers=_keeper(options, chosen, seed),
                statistical=statistical(cells, profile), mutants=options.mutants,
                deadline=None if options.time_budget is None else began + options.time_budget,
                on_example=progress.step, doing=progress.doing,
            )
            for processes in sets
        ]  # fmt: skip
        progress.total(sum(profile.drawn(check) + profile.fixed(check) for check in checks))
        results = jobs.ask(engines, checks, cells, progress.doing)
        asked = time.monotonic()
    declined = {} if settled.gated is None else settled.gated.declined
    results += [unasked.explained(cell, cells, declined) for cell in cells if cell.plan is None]
    results += [unasked.absent(cell, absent) for cell in every if absent.keys() & set(cell.stacks) and cell.plan is not None]
    results += unasked.lost(recorded, cells, here, options, known)
    results += [] if options.rerun is None else unasked.vanished(options.rerun.cells, results)
    final, problems = waiving.apply(
        unasked.allowed(results, options.allow_uncovered), accepted, set(chosen), {check.id for check in checks}, started_at.date(),
        cells=None if options.rerun is None else options.rerun.cells,
    )  # fmt: skip
    return Run(
        twostack=importlib.metadata.version("twostack"), started=started_at.isoformat(timespec="seconds"),
        machine={"system": platform.platform(), "processor": platform.machine(), "python": platform.python_version()},
        tiers=tuple(sorted({check.tier for check in checks})), profile=options.profile, seed=seed, false_alarm=confidence.FALSE_ALARM,
        mutants=options.mutants, model=options.model if selection.needs_model(checks) else "",
        contract=contract_record(options.contract, settled.gated, checks), rerun_of=options.rerun.started if options.rerun else "",
        stacks=tuple(_stack_record(info, device) for info, device in chosen.values()),
        results=final, problems=problems, exit_code=exit_code(final, problems),
        timing=Timing(
            wall=asked - ready, start=ready - began, busy=busy_seconds(jobs.busy(engines)),
            by_stack={name: busy_seconds({name: intervals}) for name, intervals in jobs.busy(engines).items()},
            checks=jobs.timings(engines),
        ),
    )  # fmt: skip


def rerun_flags(options: Options, seed: int) -> str:
    """The flags of `parity run` that draw the same inputs again."""
    model = "" if options.model == graph.MODEL else f" --model {shlex.quote(options.model)}"
    contract = "" if options.contract is None else f" {options.contract.flags}"
    return f"--profile {options.profile} --seed {seed}{model}{contract}"


def _keeper(options: Options, chosen: Mapping[str, tuple[StackInfo, str]], seed: int) -> Keeper | None:
    """What writes failures into files, where they are asked for."""
    if options.reproducers is None:
        return None
    versions = {name: _stack_record(info, device).versions for name, (info, device) in chosen.items()}
    rerun = rerun_flags(options, seed)
    of = Of(versions=versions, rerun=rerun, profile=options.profile, seed=seed, mutants=options.mutants, model=options.model)
    return Keeper(options.reproducers, of)


def coverage_of_all() -> dict[str, str]:
    """The matrix of every check and every known stack on its default device."""
    return matrix.coverage(matrix.matrix(registry.CHECKS, [_on_default(info) for info in discover.installed().values()]))


def _on_default(info: StackInfo) -> Device:
    return Device(info=info, name=info.capabilities.devices[0], dtypes=workers.declared_dtypes(info))


def statistical(cells: Sequence[Cell], profile: Profile) -> int:
    """How many statistical comparisons a run may make: fixed cases and drawn ones, of every cell that has any."""
    count = 0
    for cell in cells:
        if cell.plan is not None and cell.plan.statistical:
            count += cell.plan.statistical * (profile.drawn(cell.check) + profile.fixed(cell.check))
    return count


def _stack_record(info: StackInfo, device: str) -> StackRecord:
    return StackRecord(name=info.name, device=device, lane=info.capabilities.lane, versions=info.told_versions())
