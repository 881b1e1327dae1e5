"""Where a condition's adapters come from: what `finetune train` wrote beside each, or a fixture's training.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from contract.artifacts.manifest import FILE, TrainingManifest, read_manifest
from contract.artifacts.promotion import base_sha256
from contract.artifacts.record import Name, Packages, Record, Sha256
from contract.errors import ContractError
from contract.run.content import sha256_of_inputs
from contract.run.spec import Base, Graph, Objective
from contract.worker.discover import StackInfo
from parity.scorecard.task import sha256_of

_OF_THE_ORDER = ("epochs", "max_steps", "seq_len", "batch_size", "grad_accum", "packing", "seed")
_NOT_OF_THE_START = ("method", "dropout", "alpha", "alpha_pattern")
_OF_THE_START = ("seed", "lm_head_only", "proxy_max_layers")


class TrainedRun(Record):
    """One training run.

    initial_sha256, order_sha256: of all fields and files from which the contract makes the initial adapter and the order of rows: equal
    where these are. adapter_sha256: of the adapter's files.
    """

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    initial_sha256: Sha256
    order_sha256: Sha256
    adapter_sha256: Sha256


class Training(Record):
    """What a condition's adapters were trained by, and on what; the same for all of its seeds.

    data_sha256: of what was read beside the base. packages: as a promotion's binding has them.
    """

    stack: Name
    packages: Packages
    base_sha256: Sha256
    base: Base
    graph: Graph
    objective: Objective
    parity_digest: Sha256
    data_sha256: Sha256
    runs: Annotated[tuple[TrainedRun, ...], Field(strict=False, min_length=1, max_length=1024)]


def training_of(adapters: Mapping[int, Path], stacks: Mapping[str, StackInfo]) -> Training | None:
    """Of adapters by seed; none where `finetune train` left no manifest beside them.

    Raises:
        ContractError, ContractErrors: a manifest is not sound, is of another seed, or differs from the others in more than its seed.
    """
    places = {seed: path.parent / FILE for seed, path in adapters.items()}
    if not places or not all(place.is_file() for place in places.values()):
        return None
    found = {seed: read_manifest(place) for seed, place in places.items()}
    trainings = {seed: _one(manifest, stacks) for seed, manifest in found.items()}
    first = next(iter(trainings.values()))
    runs = []
    for seed, manifest in found.items():
        place = str(places[seed])
        if manifest.contract.exec.seed != seed:
            got, allowed = f"a run of seed {manifest.contract.exec.seed}", f"{seed}, in whose place it is scored"
            raise ContractError(place, got=got, allowed=allowed, remedy="correct the condition's adapter, or the spec's seeds")
        if differs := [name for name, value in trainings[seed].items() if value != first[name]]:
            what = f"another {', '.join(differs)} than the first seed's run"
            raise ContractError(place, got=what, allowed="runs that differ in their seed alone", remedy="train them alike")
        runs.append(_run(seed, manifest, adapters[seed]))
    return Training.model_validate(first | {"runs": tuple(runs)})


def _one(manifest: TrainingManifest, stacks: Mapping[str, StackInfo]) -> dict[str, Any]:
    name = manifest.execution_kernel
    if name not in stacks:
        raise ContractError(FILE, got=f"a run of {name}", allowed=", ".join(sorted(stacks)), remedy="score it where that stack is known")
    wanted = ("twostack", *stacks[name].capabilities.packages)
    return {
        "stack": name, "packages": {one: manifest.packages.get(one, "not installed") for one in wanted},
        "base_sha256": base_sha256(manifest.weights.values()), "base": manifest.contract.quant.base, "graph": manifest.graph,
        "objective": manifest.objective, "parity_digest": manifest.parity_digest, "data_sha256": sha256_of(sorted(manifest.data.values())),
    }  # fmt: skip


def _run(seed: int, manifest: TrainingManifest, adapter: Path) -> TrainedRun:
    contract = manifest.contract.model_dump(mode="json")
    run = contract["exec"]
    start = {
        "adapter": {name: value for name, value in contract["adapter"].items() if name not in _NOT_OF_THE_START},
        "graph": contract["graph"], "weights": sorted(manifest.weights.values()), "run": {name: run[name] for name in _OF_THE_START},
    }  # fmt: skip
    data = {name: value for name, value in contract["data"].items() if name != "train_file"}
    order = {"data": data, "files": sorted(manifest.data.values()), "run": {name: run[name] for name in _OF_THE_ORDER}}
    files = {path.name: path for path in sorted(adapter.iterdir()) if path.is_file()}
    return TrainedRun(
        seed=seed, initial_sha256=sha256_of(start), order_sha256=sha256_of(order), adapter_sha256=sha256_of(sha256_of_inputs(files))
    )
