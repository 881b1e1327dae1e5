"""Cases of tier E that travel: a graph, from which its files are written anew; the run of checkpoints, of which there is one."""

from __future__ import annotations

from dataclasses import replace

from parity.checks import artifact_checkpoint, graph_packed
from parity.checks.artifact_case import ArtifactCase, on_disk
from parity.checks.artifact_checkpoint import CheckpointCase
from parity.checks.graph_case import GraphCase
from parity.checks.packed import Packed, packs, unpacks


@packs(ArtifactCase)
def pack(case: ArtifactCase) -> Packed:
    """As the graph that it is."""
    return replace(graph_packed.pack(case), kind="artifact")


@unpacks("artifact")
def unpack(packed: Packed) -> ArtifactCase:
    """The graph again, and its files.

    Raises: as `graph_packed.unpack`.
    """
    case = graph_packed.unpack(packed)
    assert isinstance(case, GraphCase)
    return on_disk(case)


@packs(CheckpointCase)
def pack_checkpoint(case: CheckpointCase) -> Packed:
    """Nothing of it was drawn."""
    return Packed(kind="checkpoint", fields={"name": case.name}, tensors={})


@unpacks("checkpoint")
def unpack_checkpoint(packed: Packed) -> CheckpointCase:
    """The one run.

    Raises:
        ValueError: another one.
    """
    (case,) = artifact_checkpoint.cases()
    if packed.tensors or dict(packed.fields) != {"name": case.name}:
        raise ValueError(f"a run of checkpoints is {dict(packed.fields)}; there is {case.name!r} alone")
    return case
