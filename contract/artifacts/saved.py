"""An adapter as a run or a stack leaves it: in our own format, and in PEFT's.

FOLDER/adapter/    v3 with the v2 description beside it, or v2 alone
FOLDER/peft/       adapter_config.json and adapter_model.safetensors, as PEFT loads them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from contract.artifacts import peft, v2, v3
from contract.artifacts.adapter import Adapter, Place, Quant
from contract.artifacts.kinds import ADAPTERS
from contract.artifacts.names import HEAD, order_of, places
from contract.artifacts.output_folder import output_folder
from contract.errors import ContractError
from contract.model import keymap
from contract.worker.plan import GraphPlan

ADAPTER, PEFT = "adapter", "peft"
"""The folders' names."""


def write_both(adapter: Adapter, folder: Path, *, version: Literal[2, 3] = 3) -> tuple[str, ...]:
    """Writes both folders, each whole or not at all, in place of adapters that are there; the same bytes for the same adapter.

    Returns:
        What the user must know: why there is no PEFT adapter, where its format can't hold this one. Our own always can.

    Raises:
        ContractError: something else than an adapter is there.
    """
    with output_folder(folder / ADAPTER, force=True, replaces=ADAPTERS, sources=()) as built:
        (v2 if version == 2 else v3).write(built, adapter)
    try:
        with output_folder(folder / PEFT, force=True, replaces=ADAPTERS, sources=()) as built:
            _write_peft(built, adapter)
    except _NotPefts as error:
        return (f"{PEFT}/ was not written: {error}",)
    return ()


class _NotPefts(Exception):
    """PEFT's format can't hold the adapter: the parts of a fused weight don't go together."""


def _write_peft(folder: Path, adapter: Adapter) -> None:
    try:
        peft.write(folder, adapter)
    except ContractError as error:
        raise _NotPefts(error) from None


def as_filed(adapter: Adapter) -> Adapter:
    """The adapter as its files name the linears: the proxy graph's middle blocks are mid0, mid1, ... there."""
    if adapter.graph != "qlora_proxy_v1":
        return adapter
    middle = [path for path in adapter.layer_order if path != HEAD]
    names = {path: f"mid{number}" for number, path in enumerate(middle)} | {HEAD: HEAD}
    return replace(
        adapter,
        matrices={names[path]: pair for path, pair in adapter.matrices.items()},
        places={names[path]: place for path, place in adapter.places.items()},
        layer_order=tuple(names[path] for path in adapter.layer_order),
        alpha_pattern={names[path]: alpha for path, alpha in adapter.alpha_pattern.items()},
    )


def of_plan(plan: GraphPlan, matrices: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter of an open graph, by the paths of its linears, with what a plan says of it.

    Args:
        matrices: PATH.lora_a [R, in] and PATH.lora_b [out, R] of each linear, float32.

    Raises:
        ContractError: there is no linear, or a value that is not finite.
    """
    layout, lora, base = plan.layout, plan.lora, plan.base
    paths = order_of({name.rpartition(".")[0] for name in matrices})
    embed_key = keymap.hugging_face_key("embedding", model_type=layout.model_type)
    where = places(layout, paths)
    if plan.graph == "qlora_proxy_v1" and HEAD in where:
        where[HEAD] = Place(key=embed_key)  # the proxy's head is the embedding, whatever the model has beside it
    return Adapter(
        matrices={path: (matrices[f"{path}.lora_a"], matrices[f"{path}.lora_b"]) for path in paths},
        places=where,
        layer_order=paths,
        rank=lora.rank,
        alpha=lora.alpha,
        alpha_pattern={path: lora.alpha_of(path) for path in paths},
        rslora=lora.rslora,
        method="lora" if base is None else "qlora",
        quant=Quant(base_quant="none") if base is None else _nf4(base.block_size, base.double_quant),
        embed_key=embed_key,
        vocab=layout.vocab_size,
        d_model=layout.hidden_size,
        graph=plan.graph,
    )


def _nf4(block_size: int, double_quant: bool) -> Quant:
    return Quant(base_quant="nf4", double_quant=double_quant, block_size=block_size)
