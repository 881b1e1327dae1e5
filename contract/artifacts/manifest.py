"""training_manifest.json: what a run was, and on what; written at its start, and again at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from contract.artifacts.record import Line, Lines, Name, Packages, Record, Sha256, read_record, write_record
from contract.errors import ContractError
from contract.run.digest import digest, parity_digest
from contract.run.spec import FineTuneContract, Graph, Objective, Whole

FILE = "training_manifest.json"

_REMEDY = "take the file as the run wrote it"


class TrainingManifest(Record):
    """A run's manifest.

    data, weights: role or file -> SHA-256 of what was read. threads: of the computation, which the order of sums depends on; None where
    that is not known. outputs: file of the run's folder -> SHA-256, once the run is over: what a run that reproduces it is held against.
    claims_full_attention_fidelity: false for the proxy graph, and where the contract has allow_placeholder_attention_merge.
    """

    format: Literal["twostack_training_manifest"] = "twostack_training_manifest"
    version: Annotated[Literal[1], Whole] = 1
    contract: FineTuneContract
    contract_digest: Sha256
    parity_digest: Sha256
    execution_kernel: Name = Field(description="the stack that ran")
    graph: Graph
    objective: Objective
    packages: Packages
    device: Line
    git_sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")] | None
    data: dict[Line, Sha256]
    weights: dict[Line, Sha256]
    threads: Annotated[int, Field(ge=1, le=2**20)] | None = None
    outputs: dict[Line, Sha256] = Field(default_factory=dict)
    claims_full_attention_fidelity: bool
    notes: Lines = ()


def manifest_of(
    contract: FineTuneContract, *, stack: str, packages: dict[str, str], device: str, git_sha: str | None, data: dict[str, str],
    weights: dict[str, str], threads: int | None = None, outputs: Mapping[str, str] | None = None, notes: tuple[str, ...] = (),
) -> TrainingManifest:  # fmt: skip
    """The manifest of a run; what follows from the contract is taken from there."""
    return TrainingManifest(
        contract=contract,
        contract_digest=digest(contract),
        parity_digest=parity_digest(contract),
        execution_kernel=stack,
        graph=contract.graph,
        objective=contract.objective,
        packages=packages,
        device=device,
        git_sha=git_sha,
        data=data,
        weights=weights,
        threads=threads,
        outputs=dict(outputs or {}),
        claims_full_attention_fidelity=_fidelity(contract),
        notes=notes,
    )


def write_manifest(folder: Path, manifest: TrainingManifest) -> None:
    """Writes it; atomic, the same bytes for the same manifest."""
    write_record(folder / FILE, manifest)


def read_manifest(path: Path) -> TrainingManifest:
    """Reads it.

    Raises:
        ContractError, ContractErrors: it's not there or damaged; another format or version; an unknown, missing or wrong field; a field
            that is not what the contract in it says.
    """
    manifest = read_record(TrainingManifest, path, remedy=_REMEDY)
    contract = manifest.contract
    for name, got, wanted in (
        ("contract_digest", manifest.contract_digest, digest(contract)),
        ("parity_digest", manifest.parity_digest, parity_digest(contract)),
        ("graph", manifest.graph, contract.graph),
        ("objective", manifest.objective, contract.objective),
        ("claims_full_attention_fidelity", manifest.claims_full_attention_fidelity, _fidelity(contract)),
    ):
        if got != wanted:
            raise ContractError(f"{path}: {name}", got=str(got), allowed=f"{wanted}, by the contract in it", remedy=_REMEDY)
    return manifest


def _fidelity(contract: FineTuneContract) -> bool:
    return contract.graph == "full_causal" and not contract.artifact.allow_placeholder_attention_merge
