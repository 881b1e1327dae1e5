"""Gathering what gates judge: the one place of the planner that reads files and asks the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from contract.data.index import RowIndex, open_index, train_file
from contract.data.order import Split
from contract.errors import ContractError, ContractErrors, UserError, brief
from contract.model import preflight
from contract.model.preflight import ModelFiles
from contract.run import device_memory as devices
from contract.run import promotion as promotions
from contract.run.device_memory import DeviceMemory
from contract.run.facts import Facts, Refusal, Rows
from contract.run.memory import Estimate, fitting
from contract.run.promotion import Promotion
from contract.run.schedule import optimizer_steps
from contract.run.spec import ComputeDtype, FineTuneContract
from contract.worker.capabilities import Capabilities, Memory
from contract.worker.discover import StackInfo, version

Progress = Callable[[int, int], None]
"""Told bytes of the train file read, and bytes in all."""

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is not the contract's.

    device_memory: bytes, in place of what the device says of itself. cache: the folder for index files, else the user's.
    """

    promotions: Path = promotions.FOLDER
    device_memory: int | None = None
    cache: Path | None = None
    progress: Progress = lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found, and what could not be read."""

    facts: Facts
    files: ModelFiles | None
    index: RowIndex | None
    faults: tuple[Refusal, ...]


def survey(contract: FineTuneContract, stacks: Mapping[str, StackInfo], options: Options) -> Survey:
    """Looks at everything once; what can't be read becomes a fault, and its facts None.

    Raises:
        EnvironmentUnfit: the cache folder can't be written.
    """
    faults: list[Refusal] = []
    files = _attempt("model", lambda: preflight.locate_files(contract.model), faults)
    inspected = None if files is None else _attempt("model", lambda: preflight.inspect(files), faults)
    index = _attempt("data", lambda: _index(contract, options), faults)
    rows = None if index is None else _rows(contract, index)
    capabilities = {name: info.capabilities for name, info in stacks.items()}
    steps = None
    if rows is not None and not contract.exec.packing:
        run = contract.exec
        steps = optimizer_steps(rows.trained, run.batch_size, run.grad_accum, run.epochs)
        steps = steps if run.max_steps is None else min(steps, run.max_steps)
    facts = Facts(
        contract=contract,
        stacks=capabilities,
        missing={name: info.missing_packages() for name, info in stacks.items()},
        inferred=inferred(contract, capabilities),
        has_tokenizer=_has_tokenizer(contract, files),
        has_template=_attempt("model", lambda: _has_template(contract, files), faults),
        resumed=_attempt("resume_from", lambda: _resumed(contract), faults),
        inspected=inspected,
        rows=rows,
        steps=steps,
    )
    promotion = _promotion(facts, files, options.promotions)
    total = options.device_memory
    memory = devices.measure(contract.exec.device) if total is None else DeviceMemory(total=total, available=None, source="as given")
    needed = _estimate(facts, None if memory is None else contract.exec.max_vram_fraction * memory.total)
    facts = replace(facts, promotion=promotion, estimate=needed, device_memory=memory)
    return Survey(facts=facts, files=files, index=index, faults=tuple(faults))


def inferred(contract: FineTuneContract, stacks: Mapping[str, Capabilities]) -> tuple[str, ...]:
    """The stacks that lane, and method or base, lead to, by the stacks' own declarations."""
    return tuple(
        name
        for name, capabilities in stacks.items()
        if capabilities.training is not None
        and any(
            rule.lane == contract.lane and (contract.adapter.method in rule.methods or contract.quant.base in rule.bases)
            for rule in capabilities.training.inferred_for
        )
    )


def refusals_of(gate: str, error: UserError) -> tuple[Refusal, ...]:
    """What a reader found, as refusals."""
    if isinstance(error, ContractErrors):
        return tuple(refusal for fault in error.faults for refusal in refusals_of(gate, fault))
    if isinstance(error, ContractError):
        return (Refusal(gate=gate, got=f"{error.place}: {error.got}", allowed=error.allowed, remedy=error.remedy),)
    got, _, remedy = str(error).rpartition("; ")
    return (Refusal(gate=gate, got=got or remedy, allowed="what is here and sound", remedy=remedy),)


def declared_memory(capabilities: Capabilities, device: str, dtype: ComputeDtype = "float32") -> Memory | None:
    """What a stack declares of its memory on a device, in a compute dtype."""
    declared = capabilities.training.memory if capabilities.training is not None else ()
    return next((memory for memory in declared if (memory.device, memory.dtype) == (device, dtype)), None)


def _attempt(gate: str, read: Callable[[], Read], faults: list[Refusal]) -> Read | None:
    try:
        return read()
    except UserError as error:
        if not isinstance(error, ContractError | ContractErrors) and gate == "data":
            raise  # an environment that is unfit is no fault of the contract
        faults.extend(refusals_of(gate, error))
        return None


def _index(contract: FineTuneContract, options: Options) -> RowIndex:
    return open_index(train_file(contract.data), contract.data, cache=options.cache, progress=options.progress)


def _rows(contract: FineTuneContract, index: RowIndex) -> Rows:
    held_back = Split(index.kept, contract.data.validation_split, contract.exec.seed).validation
    return Rows(total=index.total, kept=index.kept, held_back=held_back)


def _has_tokenizer(contract: FineTuneContract, files: ModelFiles | None) -> bool | None:
    """None where the model was not found, since its folder may have one."""
    if files is not None:
        return files.tokenizer_json is not None
    return False if contract.model.hf_repo is None and contract.model.tokenizer_json is None else None


def _has_template(contract: FineTuneContract, files: ModelFiles | None) -> bool | None:
    if contract.data.template != "tokenizer" or files is None or files.tokenizer_json is None:
        return None
    from contract.data.tokenizer_config import read_tokenizer_config

    return read_tokenizer_config(files.tokenizer_json).template is not None


def _resumed(contract: FineTuneContract) -> str | None:
    name = contract.exec.resume_from
    if name is None:
        return None
    from contract.artifacts.training_checkpoint import read_state

    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:  # the home folder of somebody who is not there
        raise ContractError("exec.resume_from", got=f"{brief(name)} ({error})", allowed="a folder", remedy="correct the path") from None
    return read_state(folder).contract_digest


def _promotion(facts: Facts, files: ModelFiles | None, folder: Path) -> Promotion | None:
    """Of a research stack in a contract of another lane."""
    if facts.stack is None or facts.capabilities is None:
        return None
    if facts.capabilities.lane != "research" or facts.contract.lane == "research":
        return None
    packages = {name: version(name) or "not installed" for name in ("twostack", *facts.capabilities.packages)}
    return promotions.find(facts.stack, facts.contract, packages=packages, shards=() if files is None else files.shards, folder=folder)


def _estimate(facts: Facts, allowed: float | None) -> Estimate | None:
    """None where weights are missing, the stack does not run such a model, or declares nothing of its memory on this device and dtype."""
    contract, training = facts.contract, facts.training
    if facts.inspected is None or facts.inspected.missing or training is None or facts.capabilities is None:
        return None
    layout = facts.inspected.layout
    declared = declared_memory(facts.capabilities, contract.exec.device, contract.exec.compute_dtype)
    runs = contract.graph == "full_causal" and layout.model_type in training.graphs.get("full_causal", ())
    if declared is None or not runs:
        return None
    return fitting(layout, contract, declared, allowed)[0]
