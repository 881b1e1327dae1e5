"""A run from the launcher's side: its contract and folder are settled, a worker is started, and asked to train."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.artifacts import saved
from contract.artifacts.kinds import ADAPTERS
from contract.artifacts.manifest import FILE as MANIFEST
from contract.artifacts.manifest import TrainingManifest, read_manifest
from contract.artifacts.output_folder import require_free
from contract.artifacts.telemetry import FILE as TELEMETRY
from contract.errors import ContractError
from contract.reading import json_file
from contract.run.digest import differing, run_digest
from contract.run.planner import ExecutionPlan, Refused, plan
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract
from contract.run.survey import Options
from contract.training import checkpoints
from contract.training.account import About, Reproduced, require_inputs
from contract.training.inputs import Progress, input_hashes
from contract.worker.answers import RequestFailed
from contract.worker.discover import StackInfo
from contract.worker.process import Pending, StackProcess

SILENCE_SECONDS = 3600.0
"""A worker that says nothing for so long hangs: one optimiser step may be hundreds of thousands of tokens on a CPU."""

_SOURCE = Path(__file__).parents[2]
_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_GIT_SECONDS = 10.0
_ABSENT = ("NotSupported", "MissingError")
"""Classes of a worker's error that say that the device is not here."""


class Declined(Exception):
    """The planner's gates refuse the run."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"refused for {len(refused.refusals)} reasons")
        self.refused = refused


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run that is to be started.

    reproduces: the manifest that was given in place of a contract. resume: the checkpoint to go on from.
    """

    contract: FineTuneContract
    folder: Path
    resume: Path | None = None
    reproduces: TrainingManifest | None = None
    notes: tuple[str, ...] = ()


def order(
    path: Path | None, *, preset: str | None, overrides: Sequence[str], folder: Path, resume: bool, progress: Progress
) -> Order:  # fmt: skip
    """What to train, and whether the folder takes it.

    Args:
        path: a contract, or the manifest of a run that is to be reproduced; None with `resume`: as the folder's manifest has it.
        overrides: `KEY=VALUE`, over the contract.

    Raises:
        ContractError, ContractErrors: a contract that can't be read; a manifest with flags that change it, or whose files are others;
            a folder that holds something already; a damaged checkpoint.
    """
    folder = folder.expanduser().absolute()
    begun = _require_folder(folder, resume=resume)
    given = _manifest(path)
    if given is not None:
        contract = _as_given(path, given, preset, overrides, progress)
    elif path is None and resume:
        contract = _as_begun(folder, begun, preset, overrides)
    else:
        contract = read_contract(path, preset=preset, overrides=overrides)
    if begun is not None:
        _require_begun(folder, begun, contract)
    newest = checkpoints.newest(folder) if resume else None
    if newest is None and contract.exec.resume_from is not None:
        newest = Path(contract.exec.resume_from).expanduser().absolute()
    return Order(contract=contract, folder=folder, resume=newest, reproduces=given)


def settle(order: Order, stacks: Mapping[str, StackInfo], options: Options) -> ExecutionPlan:
    """The plan of a run that may be started.

    Raises:
        Declined: a gate refuses it.
        ContractError: the stack does not answer the request `train`, or is another one than that of the run that is reproduced.
        EnvironmentUnfit: the cache folder can't be written.
    """
    planned = plan(order.contract, stacks, options)
    if isinstance(planned, Refused):
        raise Declined(planned)
    if "train" not in stacks[planned.stack].capabilities.requests:
        able = [name for name, info in stacks.items() if "train" in info.capabilities.requests]
        raise ContractError(
            "stack", got=f"{planned.stack}, which does not answer the request `train`", allowed=", ".join(able) or "a stack that does",
            remedy="name another one with --stack",
        )  # fmt: skip
    first = order.reproduces
    if first is not None and first.execution_kernel != planned.stack:
        raise ContractError(
            "stack", got=planned.stack, allowed=f"{first.execution_kernel}, on which the run was that is reproduced",
            remedy="describe that stack in parity.toml, or install it",
        )  # fmt: skip
    return planned


def start(order: Order, info: StackInfo, planned: ExecutionPlan) -> StackProcess | str:
    """A worker on the run's device; or why the device is not here, where the run may go on the CPU instead.

    Raises:
        ContractError: the device is not here.
        HarnessError, RequestFailed: the worker did not come up.
    """
    process = StackProcess(info.name, info.command, planned.device)
    try:
        process.start()
    except RequestFailed as error:
        process.close()
        if error.error_class not in _ABSENT:
            raise
        able = "CPU" in info.capabilities.devices and planned.device != "CPU"
        if able and order.contract.exec.allow_cpu_fallback:
            return error.message
        remedy = "put that right" + (", set exec.device to CPU, or set exec.allow_cpu_fallback" if able else "")
        raise ContractError(
            "exec.device", got=f"{planned.device}, which is not here: {error.message}", allowed="a device that the stack finds here",
            remedy=remedy,
        ) from None  # fmt: skip
    except BaseException:
        process.close()
        raise
    return process


def submit(process: StackProcess, order: Order, info: StackInfo) -> Pending:
    """Sends the request `train`."""
    first = order.reproduces
    reproduced = None
    if first is not None:
        reproduced = Reproduced(packages=first.packages, device=first.device, threads=first.threads, outputs=first.outputs)
    changed = ("the program's source has changes that are in no commit",) if changed_since() else ()
    about = About(
        stack=info.name, packages=info.capabilities.packages, device=process.device, git_sha=git_sha(), notes=(*order.notes, *changed),
        reproduces=reproduced,
    )  # fmt: skip
    values = {
        "contract": order.contract.model_dump(mode="json"),
        "folder": str(order.folder),
        "about": about.model_dump(mode="json"),
        "resume": None if order.resume is None else str(order.resume),
    }
    return process.submit("train", values, seconds=SILENCE_SECONDS)


def git_sha(source: Path = _SOURCE) -> str | None:
    """The commit of this program, where it runs from a checkout of its own."""
    found = _git(source, "rev-parse", "HEAD")
    return found if found is not None and _SHA.fullmatch(found) else None


def changed_since(source: Path = _SOURCE) -> bool:
    """Whether that checkout has changes that are in no commit."""
    return bool(_git(source, "status", "--porcelain", "--untracked-files=no"))


def _git(source: Path, *arguments: str) -> str | None:
    if not (source / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _require_folder(folder: Path, *, resume: bool) -> TrainingManifest | None:
    """The manifest of the run that the folder holds; None where it holds nothing."""
    if folder.exists() and not folder.is_dir():
        raise ContractError(str(folder), got="a file", allowed="a folder that is new or empty", remedy="give another one")
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".partial")} if folder.exists() else set()
    if not names:
        return None
    if names & {MANIFEST, TELEMETRY, checkpoints.FOLDER}:
        if resume:
            _require_replaceable(folder)
            return read_manifest(folder / MANIFEST)
        got, remedy = "a folder that holds a run already", "add --resume to go on with it, or give another folder"
    else:
        got, remedy = "a folder that holds something else", "give another one"
    raise ContractError(str(folder), got=got, allowed="a folder that is new or empty", remedy=remedy)


def _require_replaceable(folder: Path) -> None:
    """What lies where the adapters go is told of now, not after the last step."""
    for name in (saved.ADAPTER, saved.PEFT):
        try:
            require_free(folder / name, force=True, replaces=ADAPTERS, sources=())
        except ContractError as error:
            raise ContractError(error.place, got=error.got, allowed="an adapter, or nothing", remedy="move it elsewhere") from None


def _manifest(path: Path | None) -> TrainingManifest | None:
    """The manifest that lies at a path, where it's none of a contract."""
    if path is None or path.suffix.lower() != ".json" or not path.is_file():
        return None
    value = json_file(path)
    return read_manifest(path) if value.get("format") == TrainingManifest.model_fields["format"].default else None


def _as_given(
    path: Path | None, given: TrainingManifest, preset: str | None, overrides: Sequence[str], progress: Progress
) -> FineTuneContract:  # fmt: skip
    """A manifest's contract, with the files that the run had."""
    _require_no_flags(f"{path}: contract", preset, overrides, "a manifest reproduces its run as it was; give a contract to change it")
    hashes = input_hashes(given.contract, progress=progress)
    require_inputs(Path(str(path)), given, data=hashes.data, weights=hashes.weights)
    return given.contract


def _as_begun(folder: Path, begun: TrainingManifest | None, preset: str | None, overrides: Sequence[str]) -> FineTuneContract:
    if begun is None:
        remedy = "give the contract: it then begins here"
        raise ContractError(str(folder), got="no run", allowed="the folder of one, since no contract is given", remedy=remedy)
    _require_no_flags(f"{folder / MANIFEST}: contract", preset, overrides, "a run goes on as it began; leave the flags out")
    return begun.contract


def _require_no_flags(place: str, preset: str | None, overrides: Sequence[str], remedy: str) -> None:
    flags = [*([] if preset is None else [f"--preset {preset}"]), *overrides]
    if flags:
        raise ContractError(place, got=f"flags that change it: {', '.join(flags)}", allowed="no such flag", remedy=remedy)


def _require_begun(folder: Path, begun: TrainingManifest, contract: FineTuneContract) -> None:
    now, then = run_digest(contract), run_digest(begun.contract)
    if contract.stack not in (None, begun.execution_kernel):
        raise ContractError(
            f"{folder}: stack", got=str(contract.stack), allowed=f"{begun.execution_kernel}, on which the run in this folder began",
            remedy="a stack goes on from no other's checkpoint; give another folder to begin anew",
        )  # fmt: skip
    if now != then:
        fields = ", ".join(name for name in differing(contract, begun.contract) if name != "exec.resume_from")
        raise ContractError(
            f"{folder}: contract", got=f"other values of {fields}: the digest {now}",
            allowed=f"{then}, with which the run in this folder began",
            remedy=f"leave CONTRACT out (finetune train --out {folder} --resume), or give another folder",
        )  # fmt: skip
