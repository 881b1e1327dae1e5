"""The files of a tier E case: a small model as transformers writes it, and an adapter on it in every format.

base/      config.json, model.safetensors
held/      the same as the graph holds it: an NF4 base's linears dequantised        merged/    the adapter merged into that
adapter/   v3 with the v2 description beside it        v2/    v2 alone        peft/    PEFT's
narrow/    PEFT's, each tensor in the narrowest dtype that holds its values, as the base's are
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from contract.artifacts import convert as conversion
from contract.artifacts import merge as merged
from contract.artifacts import static_attention, v2
from contract.artifacts.adapter import Adapter
from contract.artifacts.saved import ADAPTER, PEFT, write_both
from contract.model import checkpoint, weights
from contract.model.layout import GPT2Layout, Layout
from contract.model.layouts.base import ATTENTION

BASE, V2, NARROW, HELD, MERGED, STATIC = "base", "v2", "narrow", "held", "merged", "static"
AS_V2, AS_V3, AS_PEFT, FULL_CIRCLE, BACK_TO_V2 = CONVERTED = ("as-v2", "as-v3", "as-peft", "full-circle", "back-to-v2")

_GPT2_NAMES = {
    "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}  # fmt: skip
_GPT2_LEAVES = ("num_key_value_heads", "head_dim")
_CLASSES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def write(folder: Path, layout: Layout, tensors: Mapping[str, np.ndarray], adapter: Adapter) -> tuple[str, ...]:
    """Writes everything into a folder.

    Args:
        tensors: base weights by their names in contract/model/weights.py.

    Returns:
        Why there is no PEFT adapter, where its format can't hold this one.
    """
    write_base(folder / BASE, layout, tensors)
    notes = write_both(adapter, folder)
    (folder / V2).mkdir()
    v2.write(folder / V2, adapter)
    if (folder / PEFT).exists():
        _write_narrow(folder / PEFT, folder / NARROW)
    return notes


def narrowest(tensor: np.ndarray) -> np.ndarray:
    """float32 values in bfloat16 if it holds them all, to the last bit."""
    narrow = tensor.astype(ml_dtypes.bfloat16)
    return narrow if np.array_equal(narrow.astype(np.float32), tensor) else tensor


def _write_narrow(source: Path, target: Path) -> None:
    """A PEFT adapter as a library saves one that was trained in a narrow dtype."""
    shutil.copytree(source, target)
    path = target / "adapter_model.safetensors"
    save_file({name: narrowest(tensor) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def write_base(folder: Path, layout: Layout, tensors: Mapping[str, np.ndarray]) -> None:
    """A model as transformers writes one."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(layout)))
    stored: dict[str, np.ndarray] = {}
    for weight in weights.weights(layout):
        tensor = tensors[weight.name]
        if weight.key not in stored:
            stored[weight.key] = np.empty(weight.stored, np.float32)
        stored[weight.key][..., weight.start : weight.stop] = tensor.T if weight.transposed else tensor
    save_file({key: narrowest(tensor) for key, tensor in stored.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def merge(folder: Path, layout: Layout, held: Mapping[str, np.ndarray], adapter: Adapter) -> dict[str, dict[str, np.ndarray]]:
    """Merges an adapter onto a base in files, as the commands do, once; what they wrote, linear by linear: PATH -> W' [O, I].

    Writes HELD, the base as a graph holds it, and MERGED, the merged model; and of a GPT-2 the attention in the static layout.
    """
    if not (folder / MERGED).exists():
        write_base(folder / HELD, layout, held)
        merged.merge(adapter, folder / HELD, folder / MERGED)
    opened = checkpoint.open_checkpoint(folder / MERGED)
    found = {"file merge": {path: checkpoint.load(opened, path) for path in adapter.layer_order}}
    if isinstance(layout, GPT2Layout):
        if not (folder / STATIC).exists():
            static_attention.merge_static(_attention(adapter), folder / HELD, folder / STATIC)
        found["static attention"] = _static(folder / STATIC, adapter, layout)
    return found


def _attention(adapter: Adapter) -> Adapter:
    """What of an adapter lies on attention."""
    kept = tuple(path for path in adapter.layer_order if path.rpartition(".")[2] in ATTENTION)
    fields = {"matrices": adapter.matrices, "places": adapter.places, "alpha_pattern": adapter.alpha_pattern}
    own: dict[str, Any] = {name: {path: it for path, it in field.items() if path in kept} for name, field in fields.items()}
    return replace(adapter, layer_order=kept, **own)


def _static(folder: Path, adapter: Adapter, layout: Layout) -> dict[str, np.ndarray]:
    """The linears of static attention: q, k and v lie one below the other."""
    tensors, width, found = load_file(folder / static_attention.TENSORS), layout.hidden_size, {}
    for path in _attention(adapter).layer_order:
        section, _, name = path.rpartition(".")
        part = ATTENTION.index(name) * width
        inward = tensors[f"{section}.in_proj_weight"][part : part + width]
        found[path] = tensors[f"{section}.out_proj.weight"] if name == ATTENTION[-1] else inward
    return found


def convert(folder: Path) -> None:
    """Converts the adapter as the command does, once: v3 to v2 and to v3 again; that v2 to PEFT, and PEFT to v3 and to v2 again."""
    base = folder / BASE
    steps: tuple[tuple[str, str, conversion.Format, Path | None], ...] = (
        (ADAPTER, AS_V2, "v2", None), (AS_V2, AS_V3, "v3", None), (AS_V2, AS_PEFT, "peft", None), (AS_PEFT, FULL_CIRCLE, "v3", base),
        (AS_PEFT, BACK_TO_V2, "v2", base),
    )  # fmt: skip
    for source, target, to, of in steps:
        if not (folder / target).exists():
            conversion.convert(folder / source, folder / target, to, base=of)


def config(layout: Layout) -> dict[str, Any]:
    """A layout as config.json."""
    fields = layout.model_dump(mode="json", exclude_none=True)
    if isinstance(layout, GPT2Layout):
        fields = {_GPT2_NAMES.get(name, name): value for name, value in fields.items() if name not in _GPT2_LEAVES}
    else:
        fields["hidden_act"] = "silu"
        if layout.model_type in ("qwen2", "qwen3") and fields.get("sliding_window") is not None:
            fields["use_sliding_window"] = True
    return {**fields, "architectures": [_CLASSES[layout.model_type]], "torch_dtype": "float32"}
