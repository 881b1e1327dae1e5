"""A training checkpoint: all that a run needs to go on as if it had not been interrupted.

    training_checkpoint.safetensors    `adapter.{logical}.lora_a`, `.lora_b`; AdamW's `m.` and `v.` of each; float32
    training_checkpoint.json           the rest, with the SHA-256 of the tensors' file and of itself

No generator's state is kept: order, dropout and the initial adapter follow from the seed and from counters, which the step gives
(contract/data). The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.adapter_fields import AdapterFields, Key, adapter_from, fields_of, require_names, tensors_of
from contract.artifacts.kinds import Kind
from contract.artifacts.output_folder import output_folder
from contract.artifacts.record import Line, Name, Packages, Record, Sha256, read_record, to_json, write_record
from contract.artifacts.safetensors_writer import write_matrices
from contract.artifacts.tensors import read_matrices
from contract.errors import ContractError
from contract.run.spec import Method, Whole
from contract.worker.files import sha256_of

STATE, TENSORS = "training_checkpoint.json", "training_checkpoint.safetensors"

_REMEDY = "resume from another checkpoint"
_PARTS = ("adapter", "m", "v")
_Count = Annotated[int, Field(ge=0, le=2**53)]


class SavedAdapter(AdapterFields):
    """What the tensors' file does not say of the adapter."""

    adapter_method: Method
    quant: Quant | None
    embed_key: Key | None
    base_model: Line | None


class Progress(Record):
    """Where a run stands: optimiser steps done in all, epochs that are over, steps done in the epoch that is not.

    skipped: rows left out so far, for want of a supervised token. rows_of_epoch, skipped_of_epoch: rows met, and left out of them, in
    the epoch that is not over; right at an epoch's end, in the one that is.
    """

    step: _Count
    epoch: _Count
    step_of_epoch: _Count
    skipped: _Count
    rows_of_epoch: _Count
    skipped_of_epoch: _Count


class State(Record):
    """training_checkpoint.json."""

    format: Literal["twostack_training_checkpoint"] = "twostack_training_checkpoint"
    version: Annotated[Literal[1], Whole] = 1
    stack: Name
    packages: Packages
    contract_digest: Sha256 = Field(description="of the run, whether it was resumed or not (contract/run/digest.py, run_digest)")
    base_sha256: Sha256 = Field(description="of the base model's weights (contract/artifacts/promotion.py, base_sha256)")
    data: dict[Line, Sha256] = Field(description="role -> SHA-256 of the files that the rows and their ids come from")
    progress: Progress
    updates: _Count = Field(description="optimiser updates that m and v have seen: steps without a supervised token have none")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    tensors_sha256: Sha256
    adapter: SavedAdapter
    fields_sha256: Sha256 = Field(description="of all other fields: a digit that has changed is as bad as a tensor that has")


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint:
    """A checkpoint in memory; m and v by the adapter's matrices' names (`{logical}.lora_a`), float32."""

    adapter: Adapter
    m: Mapping[str, np.ndarray]
    v: Mapping[str, np.ndarray]
    stack: str
    packages: Mapping[str, str]
    contract_digest: str
    base_sha256: str
    data: Mapping[str, str]
    progress: Progress
    updates: int
    seed: int


def write(folder: Path, checkpoint: TrainingCheckpoint, *, force: bool = False) -> None:
    """Writes a checkpoint's folder, whole or not at all; the same bytes for the same checkpoint.

    Args:
        force: replace a training checkpoint that is there.

    Raises:
        ContractError: something else is there; m or v are not of the adapter's shapes, not float32, or not finite; a negative v; the
            adapter does not know its base's vocabulary or width.
    """
    matrices = tensors_of(checkpoint.adapter)
    _require_moments(matrices, checkpoint.m, checkpoint.v, "checkpoint")
    adapter = checkpoint.adapter
    saved = SavedAdapter(
        adapter_method=adapter.method,
        quant=adapter.quant,
        embed_key=adapter.embed_key,
        base_model=adapter.base_model,
        **fields_of(adapter, STATE),
    )
    named = {
        f"{part}.{name}": it for part, all_ in zip(_PARTS, (matrices, checkpoint.m, checkpoint.v), strict=True) for name, it in all_.items()
    }
    with output_folder(folder, force=force, replaces=(Kind.TRAINING_CHECKPOINT,), sources=()) as built:
        digest = write_matrices(built / TENSORS, named)
        state = State(
            stack=checkpoint.stack,
            packages=dict(checkpoint.packages),
            contract_digest=checkpoint.contract_digest,
            base_sha256=checkpoint.base_sha256,
            data=dict(checkpoint.data),
            progress=checkpoint.progress,
            updates=checkpoint.updates,
            seed=checkpoint.seed,
            tensors_sha256=digest,
            adapter=saved,
            fields_sha256="0" * 64,  # not a part of what it is the hash of
        )
        write_record(built / STATE, state.model_copy(update={"fields_sha256": hash_fields(state.model_dump(mode="json"))}))


def hash_fields(fields: Mapping[str, Any]) -> str:
    """`fields_sha256`: SHA-256 of the file's other fields, written as the file is (contract/artifacts/record.py, to_json)."""
    return hashlib.sha256(to_json({name: value for name, value in fields.items() if name != "fields_sha256"})).hexdigest()


def read_state(folder: Path) -> State:
    """What a checkpoint says of itself, without its tensors.

    Raises:
        ContractError, ContractErrors: there is none, or another format or version, or an unknown, missing or wrong field, or fields that
            are not those that were written.
    """
    path = folder / STATE
    state = read_record(State, path, remedy=_REMEDY)
    if (digest := hash_fields(state.model_dump(mode="json"))) != state.fields_sha256:
        got, allowed = f"fields of SHA-256 {digest}", f"{state.fields_sha256}, as they were written"
        raise ContractError(str(path), got=got, allowed=allowed, remedy=_REMEDY)
    return state


def read(folder: Path) -> TrainingCheckpoint:
    """Reads a checkpoint.

    Raises:
        ContractError, ContractErrors: a file is missing or damaged; another format or version; an unknown, missing or wrong field; a
            tensors' file that is not the one that was written; a tensor that is missing, unknown, not float32, of another shape, or not
            finite.
    """
    path, tensors = folder / STATE, folder / TENSORS
    state = read_state(folder)
    matrices = read_matrices(tensors)
    if (digest := sha256_of(tensors)) != state.tensors_sha256:
        raise ContractError(str(tensors), got=f"SHA-256 {digest}", allowed=f"{state.tensors_sha256}, as {STATE} has it", remedy=_REMEDY)
    names = [f"{logical}.{half}" for logical in state.adapter.base_key_map for half in ("lora_a", "lora_b")]
    require_names({f"{part}.{name}" for part in _PARTS for name in names}, matrices, tensors)
    own, m, v = ({name: matrices[f"{part}.{name}"] for name in names} for part in _PARTS)
    _require_moments(own, m, v, str(tensors))
    saved = state.adapter
    adapter = adapter_from(
        saved, own, place=path, tensors=tensors, method=saved.adapter_method, quant=saved.quant, embed_key=saved.embed_key,
        base_model=saved.base_model,
    )  # fmt: skip
    return TrainingCheckpoint(
        adapter=adapter, m=m, v=v, stack=state.stack, packages=state.packages, contract_digest=state.contract_digest,
        base_sha256=state.base_sha256, data=state.data, progress=state.progress, updates=state.updates, seed=state.seed,
    )  # fmt: skip


def _require_moments(
    matrices: Mapping[str, np.ndarray], m: Mapping[str, np.ndarray], v: Mapping[str, np.ndarray], place: str
) -> None:  # fmt: skip
    for part, moments in (("m", m), ("v", v)):
        for name in sorted(matrices.keys() | moments.keys()):
            got, wanted = moments.get(name), matrices.get(name)
            if got is None or wanted is None or got.shape != wanted.shape or got.dtype != np.float32:
                what = "none" if got is None else f"{got.dtype.name}{list(got.shape)}"
                allowed = "no such" if wanted is None else f"float32{list(wanted.shape)}"
                raise ContractError(f"{place}: {part}.{name}", got=what, allowed=allowed, remedy=_REMEDY)
            # v is a mean of squares; a negative one would give a weight that is NaN at the next step.
            if not np.isfinite(got).all() or (part == "v" and (got < 0).any()):
                raise ContractError(f"{place}: {part}.{name}", got="NaN, infinity or a v under 0", allowed="no such value", remedy=_REMEDY)
