"""`parity run --rerun-failed`: the last run's record, kept by working folder, and the options that ask its red cells again."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import ValidationError

from contract.errors import MissingError, UserError
from contract.worker import discover
from contract.worker.files import cache_folder
from parity.cells import Cell
from parity.checks import graph, own_run, registry
from parity.options import CellKey, ContractOptions, Options, Rerun
from parity.report import record
from parity.report.record import Result, Run, Status

GREEN = (Status.PASS, Status.WAIVED, Status.UNCOVERED_ALLOWED, Status.NOT_APPLICABLE, Status.LEFT_TO_NIGHTLY)
"""What need not be asked again."""

KEPT = 50
"""Records that are kept, the newest ones, of as many folders."""


def key_of(cell: Cell | Result) -> CellKey:
    """Names a cell in any run."""
    check_id, devices = (cell.id, cell.device) if isinstance(cell, Result) else (cell.check.id, cell.devices)
    return check_id, str(cell.question), cell.dtype, cell.stacks, devices


def last(folder: Path | None = None) -> Path:
    """Where the record of the last run in a folder is kept; the folder is the current one unless given."""
    home = str((folder or Path.cwd()).resolve())
    return cache_folder() / "runs" / f"{hashlib.sha256(home.encode('utf-8', 'surrogateescape')).hexdigest()}.json"


def keep(run: Run) -> None:
    """Keeps a run's record as the last one in the current folder.

    Raises:
        OSError: the cache folder can't be written.
    """
    path = last()
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write(run, path)
    older = sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime_ns, reverse=True)[KEPT:]
    for one in older:
        one.unlink(missing_ok=True)


def options(path: Path | None, *, given: Options, named: Sequence[str]) -> Options:
    """What asks the cells again that were not green in a run: with its stacks, devices, profile, seed, mutants, model and contract.

    Args:
        path: a record of `--json`; None: that of the last run in the current folder.
        given: what else the user asked for. named: flags that are the run's own to set, and were given.

    Raises:
        UserError: no record, one that is none, or settings that would make it another run.
        MissingError: there is nothing to ask again.
    """
    if named:
        raise UserError(f"--rerun-failed has {', '.join(named)} from the run that it asks again; leave that out")
    source = path or last()
    run = _read(source, is_last=path is None)
    cells = frozenset(key_of(result) for result in run.results if result.status not in GREEN)
    if not cells:
        rest = f"; it was red for its waivers: {'; '.join(run.problems)}" if run.problems else ""
        raise MissingError(
            f"no cell of the run of {run.started} ({source}) was red or not covered, so there is nothing to ask again{rest}; "
            "ask all of it: parity run"
        )
    contract = None
    if run.contract is not None:
        own = run.contract
        contract = ContractOptions(file=Path(own.file), preset=own.preset, settings=own.settings, model=own.model)
    known = {*own_run.IDS, *(check.id for check in registry.CHECKS)}
    there = {one.name: one.device for one in run.stacks} | _installed_since(run, cells)
    asked = {check_id for check_id, *_ in cells} & known  # one that is gone is told of as lost
    return Options(
        checks=tuple(sorted(asked)), stacks=tuple(there), devices=there, profile=run.profile, seed=run.seed,
        time_budget=given.time_budget, mutants=run.mutants, model=run.model or graph.MODEL, waiver_file=given.waiver_file,
        reproducers=given.reproducers, contract=contract, allow_uncovered=given.allow_uncovered, jobs=given.jobs,
        rerun=Rerun(record=source, started=run.started, cells=cells, contract="" if run.contract is None else run.contract.digest),
    )  # fmt: skip


def _installed_since(run: Run, cells: Collection[CellKey]) -> dict[str, str]:
    """Stacks that cells are of and that the run lacked, and that are here now: name -> device."""
    had, known = {one.name for one in run.stacks}, discover.discover()
    of_cells = {name: device for _, _, _, names, devices in cells for name, device in zip(names, devices, strict=True)}
    return {name: of_cells[name] for name in sorted(of_cells) if name not in had and name in known and not known[name].missing_packages()}


def _read(path: Path, *, is_last: bool) -> Run:
    if is_last and not path.exists():
        raise UserError("no run of this folder is kept to ask again; run: parity run, or name a record of --json with --from")
    try:
        return Run.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); give a record that parity run --json wrote") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}; give a record that this version of parity run --json wrote") from None
