"""A tiny Llama with a distinct value in every field, as GGUF, inside a wheel that pip takes from a folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import save
from tokenizers import pre_tokenizers

from contract.model import gguf_llama, zoo
from contract.model.wheel import Wheel

HIDDEN, HEADS, KEY_VALUE_HEADS, HEAD, FEED_FORWARD, LAYERS = 64, 6, 2, 8, 96, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "Ġ Ġ", "1 2")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Tiny:
    """The model as published (`weights`, Hugging Face's names and order) and as its wheel."""

    gguf: Path
    weights: Mapping[str, np.ndarray]
    known: zoo.KnownModel
    index: Path
    environment: Mapping[str, str]


def vocabulary() -> list[str]:
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "<user>"]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order, row by row: feature j of a head's first half goes to 2 j, of its second half to 2 j + 1."""
    out, head = np.empty_like(weight), weight.shape[0] // heads
    for row in range(weight.shape[0]):
        h, feature = divmod(row, head)
        half, j = divmod(feature, head // 2)
        out[h * head + 2 * j + half] = weight[row]
    return out


def q4_1(rng: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random Q4_1 blocks and what they mean: 32 elements, float16 d and m, nibbles q: w = d q + m (ggml, `block_q4_1`)."""
    blocks = columns // 32
    d, m = (rng.standard_normal((2, rows, blocks, 1)) * 0.1).astype(np.float16)
    q = rng.integers(0, 16, (rows, blocks, 32), dtype=np.uint8)
    packed = np.concatenate([d.view(np.uint8), m.view(np.uint8), q[..., :16] | q[..., 16:] << 4], axis=-1)
    weight = d.astype(np.float32) * q.astype(np.float32) + m.astype(np.float32)
    return packed.reshape(rows, blocks * 20), weight.reshape(rows, columns)


def write_gguf(path: Path, **changed: object) -> dict[str, np.ndarray]:
    """Writes the tiny model; returns its weights as Hugging Face orders them."""
    rng, tokens, weights = np.random.default_rng(7), vocabulary(), {}
    writer = GGUFWriter(path, str(changed.get("architecture", "llama")))
    counts = {"block_count": LAYERS, "context_length": 320, "embedding_length": HIDDEN, "feed_forward_length": FEED_FORWARD}
    counts |= {"attention.head_count": HEADS, "attention.head_count_kv": KEY_VALUE_HEADS, "attention.key_length": HEAD}
    for name, count in counts.items():
        writer.add_uint32(f"llama.{name}", count)
    writer.add_float32("llama.rope.freq_base", 12345.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 3e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(changed.get("pre", "smollm")))
    writer.add_token_list(tokens)
    writer.add_token_types([gguf_llama.CONTROL] * 3 + [gguf_llama.NORMAL] * (len(tokens) - 4) + [gguf_llama.USER_DEFINED])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, published: str, rows: int, columns: int, heads: int | None = None) -> None:
        packed, weight = q4_1(rng, rows, columns)
        weights[published] = weight
        writer.add_tensor(name, packed if heads is None else interleave(packed, heads), raw_dtype=GGMLQuantizationType.Q4_1)

    def add_norm(name: str, published: str) -> None:
        weights[published] = rng.standard_normal(HIDDEN).astype(np.float32)
        writer.add_tensor(name, weights[published])

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        add_norm(f"blk.{i}.attn_norm.weight", f"{layer}.input_layernorm.weight")
        add_norm(f"blk.{i}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight")
        add(f"blk.{i}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", HEADS * HEAD, HIDDEN, HEADS)
        add(f"blk.{i}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", KEY_VALUE_HEADS * HEAD, HIDDEN, KEY_VALUE_HEADS)
        add(f"blk.{i}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", KEY_VALUE_HEADS * HEAD, HIDDEN)
        add(f"blk.{i}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", HIDDEN, 32)
        add(f"blk.{i}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", FEED_FORWARD, HIDDEN)
        add(f"blk.{i}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", FEED_FORWARD, HIDDEN)
        add(f"blk.{i}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", HIDDEN, FEED_FORWARD)
    add_norm(str(changed.get("last", "output_norm.weight")), "model.norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def make(folder: Path, index: Path) -> Tiny:
    """Writes the GGUF file into `folder`, and the wheel that holds it into `index`."""
    source = folder / "tiny.gguf"
    weights = write_gguf(source)
    file = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    published = save(weights, metadata={"format": "pt"})
    wheel = Wheel(
        package="tiny-model",
        version="1.0",
        file_name=file.name,
        size=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_size=source.stat().st_size,
    )
    known = zoo.KnownModel(name="tiny", wheel=wheel, weights_sha256=hashlib.sha256(published).hexdigest(), weights_size=len(published))
    return Tiny(source, weights, known, index, {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)})
