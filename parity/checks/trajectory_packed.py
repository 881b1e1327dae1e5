"""A step of a run as a case that travels: the run's files, its contract, the state before the step, and the step's number."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import ContractError, ContractErrors
from contract.run.spec import FineTuneContract
from contract.training.inputs import prepare
from contract.training.stepwise import state_of, state_tensors
from contract.worker.files import FileReference
from parity.checks.packed import CanNotTravel, Packed, Tensor, packs, unpacks
from parity.checks.trajectory_case import StepCase, case_of

FILES = ("model/config.json", "model/model.safetensors", "model/tokenizer.json", "rows.jsonl")
"""Of a run of the table, in its folder."""

MOST = 1024
"""Of the numbers that say how large a run is: a file may hold any, and what it asks for must not be gigabytes."""

_BEFORE = "before."


@packs(StepCase)
def pack(case: StepCase) -> Packed:
    """Files, contract, state, number.

    Raises:
        CanNotTravel: a user's own run, whose files are too large, and are the user's.
    """
    if case.folder is None:
        raise CanNotTravel("a step of a user's own run needs the run's files, which can't travel: replay it where they are, by its command")
    home = Path(case.folder.name)
    tensors: dict[str, Tensor] = {f"file.{number}": np.fromfile(home / name, np.uint8) for number, name in enumerate(FILES)}
    tensors |= {f"{_BEFORE}{name}": array for name, array in state_tensors(case.before).items()}
    fields = case.run.contract.model_dump(mode="json")
    fields["model"]["hf_repo"], fields["data"]["train_file"] = "model", "rows.jsonl"
    return Packed(
        kind="step", tensors=tensors, fields={"name": case.name, "contract": fields, "dtype": case.run.dtype, "number": case.step.number}
    )


@unpacks("step")
def unpack(packed: Packed) -> StepCase:
    """The case again, its files in a folder of their own.

    Raises:
        ValueError, KeyError, TypeError: what is no contract of these files, a step that its run lacks, or no state of it.
    """
    fields, tensors = packed.fields, packed.tensors
    number, dtype = fields["number"], fields["dtype"]
    if not isinstance(number, int) or number < 0 or dtype not in (None, "float64"):
        raise ValueError(f"number is {number!r}, dtype {dtype!r}; allowed: a step's number from 0, and float64 or none")
    folder = tempfile.TemporaryDirectory(prefix="twostack-step-")
    home = Path(folder.name)
    (home / "model").mkdir()
    for index, name in enumerate(FILES):
        (home / name).write_bytes(_array(tensors, f"file.{index}", np.uint8).tobytes())
    try:
        run = prepare(_contract(fields["contract"], home), cache=home / "cache", dtype=dtype)
        step = next((step for step in run.steps.steps(number)), None)
    except (ContractError, ContractErrors) as error:
        raise ValueError(f"the run can't be prepared: {error}") from None
    if step is None:
        raise ValueError(f"number is {number}; the run has {run.steps.total} steps")
    before = state_of(_state(tensors), run)
    return case_of(str(fields["name"]), run, step, before, folder=folder)


def _contract(fields: Mapping[str, Any], home: Path) -> FineTuneContract:
    """The contract over the files in a folder, and over no others."""
    contract = FineTuneContract.model_validate(dict(fields))
    model, adapter, exec_ = contract.model, contract.adapter, contract.exec
    named = (model.hf_repo, contract.data.train_file), (*model.weight_shards, model.config_json, model.tokenizer_json, exec_.resume_from)
    if named[0] != ("model", "rows.jsonl") or any(named[1]):
        raise ValueError(f"the contract names the files {[name for names in named for name in names]}; allowed: model and rows.jsonl")
    sizes = (exec_.epochs, exec_.seq_len, exec_.batch_size, exec_.grad_accum, adapter.rank, *adapter.rank_pattern.values())
    if max(sizes) > MOST:
        raise ValueError(f"a size of the contract is {max(sizes)}; allowed: {MOST} at most")
    own = {"model": {"hf_repo": str(home / "model")}, "data": {"train_file": str(home / "rows.jsonl")}}
    whole = contract.model_dump()
    return FineTuneContract.model_validate({**whole, **{name: {**whole[name], **changed} for name, changed in own.items()}})


def _state(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name.removeprefix(_BEFORE): _array(tensors, name) for name in tensors if name.startswith(_BEFORE)}


def _array(tensors: Mapping[str, Tensor], name: str, dtype: type[np.generic] | None = None) -> np.ndarray:
    array = tensors[name]
    if isinstance(array, FileReference) or (dtype is not None and array.dtype != dtype):
        raise ValueError(f"{name} is no array of the case")
    return array
