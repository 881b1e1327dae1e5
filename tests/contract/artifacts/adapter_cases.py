"""Adapters and bases that tests of artifacts draw: a distinct value in every field, so that none is read in another's place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from contract.artifacts.adapter import Adapter, Place, Quant
from contract.artifacts.adapter_fields import tensors_of
from contract.artifacts.names import places
from contract.artifacts.training_checkpoint import Progress, TrainingCheckpoint
from contract.errors import ContractError, ContractErrors
from contract.model import layout

LLAMA: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 14, "hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "rope_theta": 5e4, "attention_bias": True, "mlp_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT2: Mapping[str, Any] = {
    "model_type": "gpt2", "vocab_size": 13, "n_embd": 6, "n_layer": 2, "n_head": 3, "n_positions": 16, "layer_norm_epsilon": 1e-3,
    "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}

LINEARS = ("layers.1.q_proj", "layers.0.down_proj")

Tensors = dict[str, np.ndarray]


def llama_tensors(seed: int = 3, **changed: Any) -> Tensors:
    """A checkpoint's tensors by key: 10 wide, 4 heads of 6 over 2 key heads, so that no two shapes can be taken for each other."""
    rng, config = np.random.default_rng(seed), dict(LLAMA) | changed
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (14, 10), "model.norm.weight": (10,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (14, 10)
    for layer in range(2):
        linears = {"self_attn.q_proj": (24, 10), "self_attn.k_proj": (12, 10), "self_attn.v_proj": (12, 10), "self_attn.o_proj": (10, 24)}
        for name, shape in (linears | {"mlp.gate_proj": (20, 10), "mlp.up_proj": (20, 10), "mlp.down_proj": (10, 20)}).items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            if name.startswith("self_attn"):
                shapes[f"model.layers.{layer}.{name}.bias"] = shape[:1]
        shapes |= {f"model.layers.{layer}.{name}layernorm.weight": (10,) for name in ("input_", "post_attention_")}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def gpt2_tensors(seed: int = 4, *, prefix: str = "") -> Tensors:
    """GPT-2's Conv1D weights are [in, out]; attn.c_proj is square."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (13, 6), "wpe.weight": (16, 6), "ln_f.weight": (6,), "ln_f.bias": (6,)}
    for layer in range(2):
        for name, shape in {"attn.c_attn": (6, 18), "attn.c_proj": (6, 6), "mlp.c_fc": (6, 24), "mlp.c_proj": (24, 6)}.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        shapes |= {f"h.{layer}.{name}.{kind}": (6,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return {prefix + key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def write_base(folder: Path, tensors: Tensors, config: Mapping[str, Any], *, shards: int = 1) -> Path:
    """A checkpoint's folder with a tokenizer's file; the keys go to the shards in turn, where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    (folder / "tokenizer.json").write_text('{"a": "tokenizer"}')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    where = {key: names[number % shards] for number, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensor for key, tensor in tensors.items() if where[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return folder


def adapter_on(
    config: Mapping[str, Any], linears: tuple[str, ...], *, rank: int = 3, alpha: float = 7.0, rslora: bool = False, seed: int = 5,
    ranks: Mapping[str, int] | None = None, alphas: Mapping[str, float] | None = None, **more: Any,
) -> Adapter:  # fmt: skip
    """An adapter with A and B drawn, B not zero, alpha not the rank."""
    model, rng, own = layout.read(dict(config)), np.random.default_rng(seed), ranks or {}

    def pair(logical: str) -> tuple[np.ndarray, np.ndarray]:
        out, in_ = (model.vocab_size, model.hidden_size) if logical == "lm_head" else model.widths[logical.rpartition(".")[2]]
        r = own.get(logical, rank)
        a, b = rng.standard_normal((r, in_)), rng.standard_normal((out, r))
        return a.astype(np.float32), b.astype(np.float32)

    facts = {"vocab": model.vocab_size, "d_model": model.hidden_size, "graph": "full_causal", "method": "lora"}
    return Adapter(
        matrices={logical: pair(logical) for logical in linears}, places=places(model, linears), layer_order=linears, rank=rank,
        alpha=alpha, alpha_pattern=alphas or {}, rslora=rslora, **(facts | more),
    )  # fmt: skip


def checkpoint_of(adapter: Adapter | None = None, seed: int = 8) -> TrainingCheckpoint:
    """A distinct value in every field."""
    adapter = adapter or adapter_on(LLAMA, LINEARS, ranks={LINEARS[0]: 2}, quant=Quant(base_quant="nf4"), embed_key="e", base_model="b")
    rng = np.random.default_rng(seed)
    m, v = ({name: rng.standard_normal(it.shape).astype(np.float32) for name, it in tensors_of(adapter).items()} for _ in range(2))
    return TrainingCheckpoint(
        adapter=adapter, m=m, v={name: it * it for name, it in v.items()}, stack="a_stack", packages={"twostack": "0.1.0", "torch": "2"},
        contract_digest="a" * 64, base_sha256="b" * 64, data={"data.train_file": "d" * 64}, updates=68, seed=41,
        progress=Progress(step=70, epoch=2, step_of_epoch=10, skipped=7, rows_of_epoch=40, skipped_of_epoch=3),
    )  # fmt: skip


def merged_tensors(folder: Path) -> Tensors:
    """All tensors of a folder's safetensors files, as the safetensors library reads them."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(error: pytest.ExceptionInfo[ContractError | ContractErrors]) -> str:
    """The message; each fault has all four parts, none empty."""
    faults = error.value.faults if isinstance(error.value, ContractErrors) else (error.value,)
    for fault in faults:
        assert fault.place, fault
        assert fault.got, fault
        assert fault.allowed, fault
        assert fault.remedy, fault
    return str(error.value)


def read_or_refused(read: Callable[[Path], object], path: Path) -> None:
    """Whatever lies there: no exception but a refusal that names the file."""
    try:
        read(path)
    except (ContractError, ContractErrors) as error:
        message = str(error)
    else:
        return
    assert str(path) in message


_names = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,10}[A-Za-z0-9_])?", fullmatch=True)
_lines = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=12)
_alphas = st.floats(min_value=1e-6, max_value=1e9, exclude_min=True) | st.integers(1, 10**6).map(float)
_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """Any adapter that the formats v2 and v3 can hold."""
    logicals = draw(st.lists(_names, min_size=1, max_size=4, unique=True))
    rank = draw(st.integers(1, 4))
    matrices, spots = {}, {}
    for logical in logicals:
        r, in_, out = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        values = draw(st.lists(_float32, min_size=r * (in_ + out), max_size=r * (in_ + out)))
        flat = np.array(values, np.float32)
        matrices[logical] = (flat[: r * in_].reshape(r, in_), flat[r * in_ :].reshape(out, r))
        spots[logical] = Place(key=draw(_names), offset=draw(st.none() | st.integers(0, 100)))
    quant = st.builds(
        Quant, base_quant=st.sampled_from(["none", "nf4"]), double_quant=st.none() | st.booleans(), block_size=st.none() | st.just(128)
    )
    return Adapter(
        matrices=matrices, places=spots, layer_order=tuple(draw(st.permutations(logicals))), rank=rank, alpha=draw(_alphas),
        alpha_pattern={logical: draw(_alphas) for logical in logicals if draw(st.booleans())}, rslora=draw(st.booleans()),
        method=draw(st.sampled_from(["lora", "qlora"])), quant=draw(st.none() | quant), embed_key=draw(_names),
        vocab=draw(st.integers(1, 10**6)), d_model=draw(st.integers(1, 10**5)), base_model=draw(st.none() | _lines),
        graph=draw(st.none() | st.sampled_from(["full_causal", "qlora_proxy_v1"])),
        allow_placeholder_attention_merge=draw(st.booleans()), adapter_tag=draw(st.none() | _lines),
        notes=tuple(draw(st.lists(_lines, max_size=2))),
    )  # fmt: skip
