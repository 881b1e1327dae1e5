"""The checkpoints of a run: OUT/checkpoints/step-00000500, the last three of them; written whole, and held against the run when read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contract.artifacts import training_checkpoint
from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.training_checkpoint import Progress, TrainingCheckpoint
from contract.errors import ContractError, ContractErrors
from contract.model import whole_folder
from contract.training.inputs import Run
from contract.training.outputs import adapter_of
from contract.training.trainer import TrainerState

FOLDER = "checkpoints"
KEPT = 3
"""Checkpoints that stay on disk; older ones go once a newer one is there."""

_NAME = re.compile(r"step-([0-9]{8,16})", re.ASCII)
_UNFINISHED = re.compile(r"\.(step-[0-9]{8,16})\..*\.partial", re.ASCII)
_ANOTHER = "another checkpoint"


def of_run(folder: Path) -> tuple[Path, ...]:
    """The checkpoints in a run's folder, by step; what a killed run left of one is none."""
    inside = folder / FOLDER
    if not inside.is_dir():
        return ()
    return tuple(sorted((path for path in inside.iterdir() if _NAME.fullmatch(path.name)), key=_step))


def save(folder: Path, run: Run, state: TrainerState, progress: Progress, *, stack: str, packages: Mapping[str, str]) -> Path:
    """Writes a checkpoint, then removes those before the last KEPT.

    Raises:
        ContractError: a value that is not finite.
        OSError: it can't be written; those that are there stay.
    """
    path = folder / FOLDER / f"step-{progress.step:08}"
    checkpoint = TrainingCheckpoint(
        adapter=adapter_of(run, state), m=state.m, v=state.v, stack=stack, packages=packages, contract_digest=run.digest,
        base_sha256=run.base_sha256, data=run.data, progress=progress, updates=state.updates, seed=run.contract.exec.seed,
    )  # fmt: skip
    training_checkpoint.write(path, checkpoint, force=True)
    _rotate(folder)
    return path


def state_of(run: Run, checkpoint: TrainingCheckpoint) -> TrainerState:
    """What a trainer goes on from: every mapping in the initial adapter's order, in which a trainer may sum."""
    parts = (tensors_of(checkpoint.adapter), checkpoint.m, checkpoint.v)
    adapter, m, v = ({name: part[name] for name in run.initial} for part in parts)
    return TrainerState(adapter=adapter, m=m, v=v, updates=checkpoint.updates)


def newest(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where it has none yet.

    Raises:
        ContractError, ContractErrors: the newest one is damaged; the remedy names the last good one.
    """
    found = of_run(folder)
    if not found:
        return None
    try:
        training_checkpoint.read(found[-1])
    except (ContractError, ContractErrors) as error:
        raise _damaged(found, error) from None
    return found[-1]


def find_last_good(folder: Path) -> Path | None:
    """The newest checkpoint that is sound."""
    for path in reversed(of_run(folder)):
        try:
            training_checkpoint.read(path)
        except (ContractError, ContractErrors):
            continue
        return path
    return None


def require_own(run: Run, path: Path, checkpoint: TrainingCheckpoint, *, stack: str) -> None:
    """Refuses a checkpoint of another contract, stack, base model or data, or of another place in the run than it says.

    Raises:
        ContractError: names the two.
    """
    # before the digest, in which the contract's field stack is too: what differs has a name
    _require(path, "stack", checkpoint.stack, stack, f"a checkpoint of {stack}, or go on with {checkpoint.stack}: set the field stack")
    _require(path, "contract_digest", checkpoint.contract_digest, run.digest, "the contract that the run began with")
    _require(path, "base_sha256", checkpoint.base_sha256, run.base_sha256, "the weights that the run began with")
    for role in sorted(set(checkpoint.data) | set(run.data)):
        _require(path, f"data: {role}", checkpoint.data.get(role), run.data.get(role), "the files that the run began with")
    matrices = tensors_of(checkpoint.adapter)
    for name in sorted({*matrices, *run.initial}):
        _require(path, name, _shape(matrices.get(name)), _shape(run.initial.get(name)), _ANOTHER)
    progress, step = checkpoint.progress, min(checkpoint.progress.step, run.steps.total)
    told = (progress.step, progress.epoch, progress.step_of_epoch)
    _require(path, "progress (step, epoch, step_of_epoch)", told, (step, *place(run, step)), _ANOTHER)


def place(run: Run, step: int) -> tuple[int, int]:
    """Where a run stands after so many steps: epochs that are over, and steps of the one that is not."""
    epoch = 0
    while epoch < run.contract.exec.epochs and step >= (count := run.steps.in_epoch(epoch)):
        epoch, step = epoch + 1, step - count
    return epoch, step


def sweep(folder: Path) -> None:
    """Removes what killed runs left half written, or were about to remove."""
    inside = folder / FOLDER
    if inside.is_dir():
        for name in {match[1] for path in inside.iterdir() if (match := _UNFINISHED.fullmatch(path.name))}:
            whole_folder.sweep(inside / name)
    _rotate(folder)


def _rotate(folder: Path) -> None:
    for old in of_run(folder)[:-KEPT]:
        going = old.with_name(f".{old.name}.old.partial")  # a folder that is half removed must not look like a checkpoint
        old.rename(going)
        shutil.rmtree(going)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _shape(matrix: np.ndarray | None) -> str:
    return "none" if matrix is None else f"shape {list(matrix.shape)}"


def _require(path: Path, what: str, got: object, wanted: object, remedy: str) -> None:
    if got != wanted:
        raise ContractError(f"{path}: {what}", got=str(got), allowed=f"{wanted}, which is this run's", remedy=f"take {remedy}")


def _damaged(found: tuple[Path, ...], error: ContractError | ContractErrors) -> ContractError:
    first = error.faults[0] if isinstance(error, ContractErrors) else error
    good = find_last_good(found[-1].parents[1])
    bad = found if good is None else found[found.index(good) + 1 :]
    names = " and ".join(map(str, bad))
    then = "--resume then begins anew" if good is None else f"--resume then goes on from {good}, the last good one"
    return ContractError(first.place, got=first.got, allowed=first.allowed, remedy=f"remove {names}: {then}")
