"""A Llama model in a GGUF file, written as a Hugging Face folder.

Weights come out in float32, as the file's quantisation defines them. Two things differ between the formats:

- llama.cpp rotates neighbouring pairs of a head's features where Hugging Face rotates its two halves, so its
  converter interleaves the rows of q_proj and k_proj; here they are put back (`unpermute`).
- GGUF names its pre-tokenizer instead of describing it (`PRE_TOKENIZERS`).

Legend: H heads (key-value heads for k_proj), D features of a head, I in_features.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import UserError

WEIGHTS_FILE = "model.safetensors"

NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names and Hugging Face's (gguf-py, `tensor_mapping.py`), without block number and `.weight`."""

PRE_TOKENIZERS = ("smollm",)
"""llama.cpp's `smollm`: every digit on its own, then GPT-2's pattern (llama.cpp, `src/llama-vocab.cpp`)."""

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Token types (GGUF specification, `tokenizer.ggml.token_type`)."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def convert(source: Path, folder: Path, *, progress: Progress = lambda done, total: None) -> str:
    """Writes the model in `source` as a Hugging Face folder: config, weights in float32, tokenizer, chat template.

    The same source gives the same bytes of `model.safetensors` on every machine: dequantising is one product and one
    sum an element, each rounded to float32.

    Returns:
        The SHA-256 of `model.safetensors`.

    Raises:
        UserError: not a Llama model, or one with a part that is not understood here.
    """
    from gguf import GGUFReader

    reader = GGUFReader(source)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata.get("general.architecture") != "llama":
        raise UserError(f"{source.name} holds a model of architecture {metadata.get('general.architecture')!r}; only llama is converted")
    tensors = {huggingface_name(tensor.name): tensor for tensor in reader.tensors}
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config(metadata, tied="lm_head.weight" not in tensors))
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **_token_ids(metadata)})
    _write_tokenizer(metadata, folder)
    heads = {"q_proj": metadata["llama.attention.head_count"], "k_proj": metadata["llama.attention.head_count_kv"]}
    return write_safetensors(
        folder / WEIGHTS_FILE,
        {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()},
        lambda name: _float32(tensors[name], heads.get(name.split(".")[-2])),
        progress=progress,
    )


def huggingface_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        UserError: a tensor that a Llama model as understood here does not have.
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None or match[2] not in NAMES:
        raise UserError(f"tensor {name!r} is not understood; a Llama model has {', '.join(NAMES)}, each with .weight")
    return f"{f'model.layers.{match[1]}.' if match[1] else ''}{NAMES[match[2]]}.weight"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q_proj or k_proj in Hugging Face's order.

    Row h D + 2 j + s becomes row h D + s D / 2 + j, for s in 0, 1: the inverse of `LlamaModel.permute` in llama.cpp's
    `convert_hf_to_gguf.py`.

    Args:
        weight: [H D, I], any dtype.
        heads: H, the key-value heads for k_proj.

    Returns:
        [H D, I], same dtype.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config(metadata: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """`config.json` from GGUF's metadata, with the keys of a published Llama checkpoint."""
    heads = int(metadata["llama.attention.head_count"])
    hidden = int(metadata["llama.embedding_length"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": int(metadata.get("llama.attention.key_length", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(metadata["llama.feed_forward_length"]),
        "max_position_embeddings": int(metadata["llama.context_length"]),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": int(metadata["llama.block_count"]),
        "num_key_value_heads": int(metadata["llama.attention.head_count_kv"]),
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        **_token_ids(metadata),
    }


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    progress: Progress = lambda done, total: None,
) -> str:
    """Writes float32 tensors one at a time, by name, so that only one is in memory and the bytes never vary.

    Format: 8 bytes length (little-endian), JSON header padded with spaces to 8 bytes, the tensors (safetensors, `README.md`).

    Returns:
        The file's SHA-256.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for name in sorted(shapes):
        end = total + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [total, end]}
        total = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, done = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for name in sorted(shapes):
            array = np.ascontiguousarray(read(name), dtype="<f4")
            assert array.shape == shapes[name], f"{name}: {array.shape} is not {shapes[name]}"
            file.write(array.data)
            digest.update(array.data)
            done += array.nbytes
            progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _float32(tensor: Any, heads: int | None) -> np.ndarray:
    from gguf.quants import dequantize

    weight: np.ndarray = dequantize(tensor.data, tensor.tensor_type)
    return weight if heads is None else unpermute(weight, heads)


def _shortest(value: float) -> float:
    """GGUF holds float32 where config.json holds decimals: 9.99999974e-06 is the 1e-05 that the model was published with."""
    return float(str(np.float32(value)))


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    keys = {name: f"tokenizer.ggml.{key}_token_id" for name, key in names.items()}
    return {name: int(metadata[key]) for name, key in keys.items() if key in metadata}


def _write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS or metadata.get("tokenizer.ggml.add_bos_token"):
        raise UserError(f"tokenizer {kind}/{pre} is not understood; allowed: gpt2 with {', '.join(PRE_TOKENIZERS)}, adding no BOS")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    if not set(types) <= {NORMAL, CONTROL, USER_DEFINED}:
        raise UserError(f"token types {sorted(set(types))} are not understood; allowed: {NORMAL}, {CONTROL}, {USER_DEFINED}")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED])
    special = [AddedToken(token, normalized=False, special=True) for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    keys = {name: f"tokenizer.ggml.{key}_token_id" for name, key in names.items()}
    _write_json(
        folder / "tokenizer_config.json",
        {name: tokens[metadata[key]] for name, key in keys.items() if key in metadata}
        | {
            "add_prefix_space": False,
            "chat_template": metadata.get("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(metadata["llama.context_length"]),
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
