"""A merge into plain multi-head attention: each layer's projections as the tensors of `torch.nn.MultiheadAttention`, and nothing else.

static_attention.safetensors    of layers.0, layers.1, ...: in_proj_weight [3 D, D] (q, k and v, one below the other), in_proj_bias [3 D],
                                out_proj.weight [D, D], out_proj.bias [D]; float32
static_attention.json           heads, width, what was merged, the tensors' SHA-256

Plain attention is softmax(q k^T / sqrt(head_dim)) v, head by head (arXiv:1706.03762, section 3.2.2). Between the projections and the
scores it does nothing, so that it can't hold an architecture with RoPE, which turns q and k there by the token's position: no fixed
weight does that. A merge in the checkpoint's own layout (contract/artifacts/merge.py) is right for every architecture.

Legend: D hidden_size, O out_features, I in_features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.by_path import by_path
from contract.artifacts.delta import Delta, merged_tiles, rows_at_once
from contract.artifacts.kinds import Kind
from contract.artifacts.merge import Progress
from contract.artifacts.merge_manifest import MergedAdapter, described
from contract.artifacts.merge_plan import open_base, plan
from contract.artifacts.output_folder import output_folder
from contract.artifacts.record import Record, Sha256, write_record
from contract.artifacts.safetensors_writer import write_matrices
from contract.errors import ContractError
from contract.model.checkpoint import Checkpoint, load, open_checkpoint
from contract.model.layout import GPT2Layout, Layout
from contract.model.layouts.base import ATTENTION
from contract.run.spec import Whole

MANIFEST, TENSORS = "static_attention.json", "static_attention.safetensors"

_REMEDY = "leave --layout out: the checkpoint's own layout holds every merge"
_INWARD, _OUTWARD = ATTENTION[:-1], ATTENTION[-1]
_Size = Annotated[int, Field(ge=1)]


class StaticAttention(Record):
    """static_attention.json. claims_full_attention_fidelity: as a merged model's manifest has it."""

    format: Literal["twostack_static_attention"] = "twostack_static_attention"
    version: Annotated[Literal[1], Whole] = 1
    num_hidden_layers: _Size
    hidden_size: _Size
    num_attention_heads: _Size
    adapter: MergedAdapter
    claims_full_attention_fidelity: bool
    tensors_sha256: Sha256


def merge_static(
    adapter: Adapter, base_folder: Path, target: Path, *, force: bool = False, sources: Sequence[Path] = (),
    progress: Progress = lambda stage, done, total: None,
) -> StaticAttention:  # fmt: skip
    """Writes the merged attention of every layer into a folder of its own, in the bits of contract/artifacts/merge.py.

    Args:
        force: replace a static attention that is there already; nothing else is ever replaced.
        sources: folders beside the base that the target must not replace: the adapter's.

    Raises:
        ContractError, ContractErrors: the base is no plain attention, or not sound, or not the adapter's; the adapter has LoRA elsewhere;
            the target is not free; a merged value is not finite. Nothing is left of the target then.
    """
    checkpoint = open_checkpoint(base_folder)
    require_plain(checkpoint.layout, str(base_folder))
    plan(adapter, open_base(base_folder))  # every linear has its weight there
    own = _of_attention(by_path(adapter, checkpoint.layout))
    layers = checkpoint.layout.num_hidden_layers
    with output_folder(target, force=force, replaces=(Kind.STATIC_ATTENTION,), sources=(base_folder, *sources)) as folder:
        tensors: dict[str, np.ndarray] = {}
        for layer in range(layers):
            tensors |= _layer(f"layers.{layer}", checkpoint, own)
            progress("merge", layer + 1, layers)
        record = StaticAttention(
            num_hidden_layers=layers, hidden_size=checkpoint.layout.hidden_size,
            num_attention_heads=checkpoint.layout.num_attention_heads, adapter=described(adapter),
            claims_full_attention_fidelity=adapter.claims_full_attention_fidelity,
            tensors_sha256=write_matrices(folder / TENSORS, tensors),
        )  # fmt: skip
        write_record(folder / MANIFEST, record)
    return record


def require_plain(layout: Layout, place: str) -> None:
    """Sees to it that a model's attention is plain multi-head attention.

    Raises:
        ContractError: RoPE, or another divisor of the scores.
    """
    if not isinstance(layout, GPT2Layout):
        raise ContractError(
            f"{place}: static attention", got=f"{layout.model_type}, whose RoPE turns q and k by position after they are projected",
            allowed="gpt2: no fixed weight turns by position", remedy=_REMEDY,
        )  # fmt: skip
    if not layout.scale_attn_weights or layout.scale_attn_by_inverse_layer_idx:
        name = "scale_attn_by_inverse_layer_idx true" if layout.scale_attn_by_inverse_layer_idx else "scale_attn_weights false"
        raise ContractError(
            f"{place}: static attention", got=f"{name}, another divisor of the scores", allowed="sqrt(head_dim), as plain attention has it",
            remedy=_REMEDY,
        )  # fmt: skip


def _of_attention(adapter: Adapter) -> Adapter:
    """The same adapter on weights that lie [out, in], if it has LoRA on attention alone."""
    for path in adapter.layer_order:
        if path.rpartition(".")[2] not in ATTENTION:
            raise ContractError("static attention", got=f"LoRA on {path}", allowed=", ".join(ATTENTION), remedy=_REMEDY)
    return replace(adapter, places={path: Place(key=f"{path}.weight") for path in adapter.places})


def _layer(prefix: str, checkpoint: Checkpoint, adapter: Adapter) -> dict[str, np.ndarray]:
    inward = [f"{prefix}.{name}" for name in _INWARD]
    outward = f"{prefix}.{_OUTWARD}"
    return {
        f"{prefix}.in_proj_weight": np.concatenate([_merged(path, checkpoint, adapter) for path in inward]),
        f"{prefix}.in_proj_bias": np.concatenate([load(checkpoint, f"{path}.bias") for path in inward]),
        f"{prefix}.out_proj.weight": _merged(outward, checkpoint, adapter),
        f"{prefix}.out_proj.bias": load(checkpoint, f"{outward}.bias"),
    }


def _merged(path: str, checkpoint: Checkpoint, adapter: Adapter) -> np.ndarray:
    weight_OI = load(checkpoint, path)
    if path not in adapter.matrices:
        return weight_OI
    deltas = [Delta(adapter=adapter, logical=path, row=0, column=0)]
    return np.concatenate([after for _, after in merged_tiles(_tiles(weight_OI), deltas, place=f"{checkpoint.name}: {path}")])


def _tiles(weight_OI: np.ndarray) -> Iterator[np.ndarray]:
    rows = rows_at_once(weight_OI.shape[1])
    return (weight_OI[start : start + rows] for start in range(0, len(weight_OI), rows))
