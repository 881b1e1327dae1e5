"""The request `train` on the worker's side: everything but the computation, which a stack brings as a Trainer.

def train(self, **values: Any) -> Reply:
    return session.train(self._channel, lambda run: Prepared(trainer=MyTrainer(run)), **values)
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contract.artifacts import manifest, telemetry, training_checkpoint
from contract.artifacts.manifest import TrainingManifest, read_manifest
from contract.artifacts.training_checkpoint import TrainingCheckpoint
from contract.errors import ContractError
from contract.run.digest import run_digest
from contract.run.spec import FineTuneContract
from contract.training import checkpoints
from contract.training.account import About, Account, Prepared, require_inputs
from contract.training.inputs import Run, prepare
from contract.training.loop import BEGINNING, Channel, Outcome, drive
from contract.training.trainer import OutOfMemory
from contract.worker import files
from contract.worker.stack import Reply

__all__ = ["About", "Make", "Prepared", "train"]

Make = Callable[[Run], Prepared]
"""A stack's trainer for a run, with the initial adapter in place; OutOfMemory where it does not fit."""

LOCK_SECONDS = 30.0
"""For a run whose launcher was killed, and which finishes its step and saves."""


def train(
    channel: Channel, make: Make, *, contract: Mapping[str, Any], folder: str, about: Mapping[str, Any], resume: str | None = None
) -> Reply:
    """Answers the request `train`: how the run ended (contract.training.loop.Outcome).

    Args:
        folder: the run's own; it's made where it is not there.
        about: the fields of contract.training.account.About.
        resume: the checkpoint to go on from.

    Raises:
        ContractError, ContractErrors: a file or field that is not sound, or not the run's; another run is at work in the folder.
        OSError: the folder can't be written.
    """
    own, home = About.model_validate(dict(about)), Path(folder)
    with _alone(home, channel):
        _sweep(home)
        settled = FineTuneContract.model_validate(dict(contract))
        run = prepare(settled, progress=lambda stage, done, total: _tell(channel, stage, done=done, of=total))
        resumed = None if resume is None else _resumed(run, Path(resume), own.stack)
        earlier = _earlier(home, run)
        at = BEGINNING if resumed is None else resumed.progress
        _tell(channel, "load")
        try:
            prepared = make(run)
            if resumed is not None:
                prepared.trainer.restore(checkpoints.state_of(run, resumed))
        except (OutOfMemory, MemoryError) as error:
            return Reply(values=_too_large(home, run, at.step, at.skipped, error).values())
        account = Account(home, run, own, prepared, earlier)
        account.begin(None if resumed is None else f"resumed from the checkpoint of step {at.step}")
        _tell(channel, "begin", step=at.step, total=run.steps.total, notes=list(account.notes))
        outcome = drive(run, prepared.trainer, channel, home, stack=own.stack, packages=account.packages, resumed=resumed)
        return Reply(values=outcome.values() | {"notes": account.end(outcome)})


def _sweep(folder: Path) -> None:
    """Removes what killed runs left half written."""
    checkpoints.sweep(folder)
    for name in (manifest.FILE, telemetry.FILE):
        files.sweep(folder / name)


def _resumed(run: Run, path: Path, stack: str) -> TrainingCheckpoint:
    found = training_checkpoint.read(path)
    checkpoints.require_own(run, path, found, stack=stack)
    return found


def _earlier(folder: Path, run: Run) -> TrainingManifest | None:
    """The manifest that the run wrote when it began, held against what is there now; None where it begins.

    Raises:
        ContractError: another contract, other weights, other data.
    """
    path = folder / manifest.FILE
    if not path.is_file():
        return None
    found = read_manifest(path)
    if (then := run_digest(found.contract)) != run.digest:
        raise ContractError(
            f"{path}: contract", got=f"the digest {run.digest}", allowed=f"{then}, with which the run in this folder began",
            remedy="take that contract, or give another folder",
        )  # fmt: skip
    require_inputs(path, found, data=run.data, weights=run.weights)
    return found


def _too_large(folder: Path, run: Run, step: int, skipped: int, error: Exception) -> Outcome:
    found = checkpoints.of_run(folder)
    message = f"no memory is left while the model is loaded ({error or 'of the process'})"
    return Outcome(
        end="out_of_memory", step=step, total=run.steps.total, skipped=skipped, checkpoint=str(found[-1]) if found else None,
        message=message,
    )  # fmt: skip


@contextmanager
def _alone(folder: Path, channel: Channel) -> Iterator[None]:
    """Holds the folder; the system frees it even after a SIGKILL."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + LOCK_SECONDS
    try:
        while not _locked(descriptor):
            if channel.cancelled or time.monotonic() > deadline:
                raise ContractError(
                    str(folder), got="a folder in which another run is at work", allowed="one of its own",
                    remedy="wait for that run to end, or give another folder",
                )  # fmt: skip
            _tell(channel, "wait")
            time.sleep(0.2)
        yield
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk tells of no file
        raise
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # a file system without locks
    return True


def _tell(channel: Channel, stage: str, **values: Any) -> None:
    with suppress(OSError):  # a launcher that is gone
        channel.progress(stage=stage, **values)
