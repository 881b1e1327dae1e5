"""The adapters that a run leaves in OUT/adapter and OUT/peft (contract/artifacts/saved.py).

A linear goes by its path in the graph (layers.3.q_proj); in these two folders those of the proxy graph's middle blocks go by mid0,
mid1, ... in layer order. The same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from contract.artifacts.adapter import Adapter, Place, Quant
from contract.artifacts.names import HEAD, order_of, places
from contract.artifacts.saved import as_filed, write_both
from contract.model.checkpoint import Checkpoint
from contract.run.spec import AdapterSpec, FineTuneContract


class _Run(Protocol):
    """What is asked of a run."""

    @property
    def contract(self) -> FineTuneContract: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


class _State(Protocol):
    """What is asked of a trainer's state: the matrices PATH.lora_a [R, in] and PATH.lora_b [out, R], float32."""

    @property
    def adapter(self) -> Mapping[str, np.ndarray]: ...


def write_adapters(run: _Run, state: _State, folder: Path) -> tuple[str, ...]:
    """Writes both folders, each whole or not at all, in place of those of an earlier end of the same run.

    Returns:
        What the user must know: why there is no PEFT adapter, where its format can't hold this one. Our own always can.

    Raises:
        ContractError: something else than an adapter is there.
    """
    return write_both(as_filed(adapter_of(run, state)), folder, version=run.contract.artifact.adapter_schema_version)


def adapter_of(run: _Run, state: _State) -> Adapter:
    """The adapter of a run's state, by the paths of its linears, with all that the formats say of it.

    Raises:
        ContractError: the state has a linear that the model lacks, or a value that is not finite.
    """
    contract, layout = run.contract, run.checkpoint.layout
    paths = order_of({name.rpartition(".")[0] for name in state.adapter})
    embed_key = run.checkpoint.placed["embedding"].key
    where = places(layout, paths)
    if contract.graph == "qlora_proxy_v1" and HEAD in where:
        where[HEAD] = Place(key=embed_key)  # the proxy's head is the embedding, whatever the model has beside it
    return Adapter(
        matrices={path: (state.adapter[f"{path}.lora_a"], state.adapter[f"{path}.lora_b"]) for path in paths},
        places=where,
        layer_order=paths,
        rank=contract.adapter.rank,
        alpha=contract.adapter.alpha,
        alpha_pattern={path: _own_alpha(contract.adapter, path) for path in paths},
        rslora=contract.adapter.rslora,
        method=contract.adapter.method,
        quant=_quant(contract),
        embed_key=embed_key,
        vocab=layout.vocab_size,
        d_model=layout.hidden_size,
        base_model=contract.model.hf_repo,
        graph=contract.graph,
        allow_placeholder_attention_merge=contract.artifact.allow_placeholder_attention_merge,
        adapter_tag=contract.exec.adapter_tag,
        notes=_notes(contract),
    )


def _own_alpha(adapter: AdapterSpec, path: str) -> float:
    """A linear's own key (layers.3.q_proj) goes before its kind's (q_proj), and that before the usual alpha."""
    return adapter.alpha_pattern.get(path, adapter.alpha_pattern.get(path.rpartition(".")[2], adapter.alpha))


def _quant(contract: FineTuneContract) -> Quant:
    quant = contract.quant
    if quant.base == "none":
        return Quant(base_quant="none")
    return Quant(base_quant=quant.base, double_quant=quant.double_quant, block_size=quant.block_size)


def _notes(contract: FineTuneContract) -> tuple[str, ...]:
    notes = []
    if contract.graph == "qlora_proxy_v1":
        notes.append("trained on the proxy graph, which is no whole transformer")
    if contract.artifact.allow_placeholder_attention_merge:
        notes.append("allow_placeholder_attention_merge: what is made of it claims no full attention fidelity")
    if contract.artifact.deployment_target == "mobile_edge":
        notes.append("trained within the limits of deployment_target mobile_edge")
    return tuple(notes)
