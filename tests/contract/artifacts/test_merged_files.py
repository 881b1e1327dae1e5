"""The files of a merged model: how many, what each holds, where its tensors lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from contract.artifacts.merge import merge
from contract.artifacts.merge_manifest import content_sha256, read_manifest
from contract.artifacts.safetensors_writer import ITEM_BYTES
from contract.errors import ContractError
from contract.model import headers
from tests.contract.artifacts.adapter_cases import GPT2, LINEARS, LLAMA, Tensors, adapter_on, gpt2_tensors, llama_tensors, write_base
from tests.contract.artifacts.exact_merge import done


def of_three_dtypes() -> Tensors:
    """Names whose order is not that of their dtypes' widths, of odd sizes."""
    tensors = llama_tensors()
    tensors["model.layers.0.input_layernorm.weight"] = np.ones(9, np.float16)
    tensors["model.layers.9.a.weight"] = np.arange(3, dtype=np.uint8)
    tensors["model.layers.9.b.weight"] = np.arange(5, dtype=np.int64)
    tensors["model.layers.9.c.weight"] = np.ones(3, ml_dtypes.bfloat16)
    return tensors


def test_each_tensor_lies_aligned_to_its_dtype_and_the_header_to_eight(tmp_path: Path) -> None:
    """A reader that maps the file needs both; names of one more letter each shift the header's length."""
    for letters in range(1, 9):
        tensors = of_three_dtypes() | {"z" * letters: np.zeros(1, np.uint8)}
        path = done(tmp_path, adapter_on(LLAMA, LINEARS), tensors, LLAMA, f"out{letters}") / "model.safetensors"
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
        for tensor in headers.read(path).values():
            assert tensor.start % ITEM_BYTES[tensor.dtype] == 0


def test_a_file_is_filled_to_the_limit_and_no_byte_beyond(tmp_path: Path) -> None:
    tensors = {key: llama_tensors()[key] for key in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight")}
    base = write_base(tmp_path / "base", tensors, LLAMA)
    sizes = [tensor.nbytes for tensor in tensors.values()]
    for limit, files in ((sum(sizes), 1), (sum(sizes) - 1, 2), (max(sizes), 2), (1, 2)):
        merge(adapter_on(LLAMA, LINEARS), base, tmp_path / f"out{limit}", shard_bytes=limit)
        assert len(list((tmp_path / f"out{limit}").glob("*.safetensors"))) == files
    index = json.loads((tmp_path / "out1" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}


def test_the_base_s_hash_is_what_its_description_says(tmp_path: Path) -> None:
    """Written out, so that another program could compute it."""
    tensors = of_three_dtypes()
    names = {"float32": "F32", "float16": "F16", "uint8": "U8", "int64": "I64", "bfloat16": "BF16"}
    lines = [
        f"{key} {names[tensors[key].dtype.name]} {list(tensors[key].shape)} {hashlib.sha256(tensors[key].tobytes()).hexdigest()}\n"
        for key in sorted(tensors)
    ]
    manifest = read_manifest(done(tmp_path, adapter_on(LLAMA, LINEARS), tensors, LLAMA))
    assert manifest.base_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_named_chat_templates_go_along(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", llama_tensors(), LLAMA)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "{{ x }}"


def test_gpt2_s_prefix_makes_no_other_adapter(tmp_path: Path) -> None:
    """The same adapter comes with it from PEFT and without it from v3: a second merge is a second merge."""
    linears = ("layers.0.o_proj", "layers.1.up_proj")
    plain = adapter_on(GPT2, linears)
    prefixed = adapter_on(GPT2, linears)
    for place in prefixed.places.values():
        object.__setattr__(place, "key", f"transformer.{place.key}")
    assert content_sha256(prefixed) == content_sha256(plain)
    once = done(tmp_path, plain, gpt2_tensors(), GPT2)
    with pytest.raises(ContractError, match="merged into already"):
        merge(prefixed, once, tmp_path / "twice")
