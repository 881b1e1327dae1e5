"""Preflight: what the headers of a model's files say; no weight is read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks.preflight import sparse_model
from contract.errors import ContractError, ContractErrors
from contract.model import checkpoint, preflight
from contract.model.layout import GPT2Layout
from contract.model.preflight import inspect, locate_files
from contract.run.spec import ModelSpec
from tests.contract.model.tiny_checkpoint import INDEX, WEIGHTS, Tensors, V, weights, write
from tests.contract.model.tiny_witness import fields_of, model_of

O_PROJ = "model.layers.{}.self_attn.o_proj.weight"


def refused(message: str, **spec: Any) -> str:
    with pytest.raises((ContractError, ContractErrors), match=message) as caught:
        inspect(locate_files(ModelSpec(**spec)))
    return str(caught.value)


def gpt2(folder: Path, *, prefix: bool = True, **more: Any) -> Tensors:
    """A tiny GPT-2 as its authors' files have it: buffers among the weights."""
    model, fields = model_of("gpt2", fields_of("gpt2")), fields_of("gpt2", **more)
    model = model if prefix else model.base_model
    tensors = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    for layer in range(3):
        tensors[f"{'transformer.' if prefix else ''}h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 40, 40), np.uint8))
        tensors[f"{'transformer.' if prefix else ''}h.{layer}.attn.masked_bias"] = np.full((), -1e4, np.float64)
    write(folder, tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **fields}))
    return tensors


# What the headers say


def test_what_a_sound_model_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    found = inspect(locate_files(ModelSpec(hf_repo=str(folder))))
    opened = checkpoint.open_checkpoint(folder)
    assert found.layout == opened.layout
    assert found.parameters == sum(tensor.size for tensor in weights().values())
    assert (found.nbytes, found.dtypes, found.missing, found.strange) == (4 * found.parameters, ("F32",), (), ())
    assert found.proxy == preflight.ProxyStack(embed_key="model.embed_tokens.weight", expected=2, matched=2, missing=())


def test_dtypes_and_bytes_of_several(tmp_path: Path) -> None:
    tensors = weights()
    tensors[V] = tensors[V].astype(np.float16)
    found = inspect(locate_files(ModelSpec(hf_repo=str(write(tmp_path / "tiny", tensors)))))
    assert (found.dtypes, found.nbytes) == (("F16", "F32"), sum(tensor.nbytes for tensor in tensors.values()))


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    tensors = weights(tie_word_embeddings=True)
    alone = write(tmp_path / "alone", tensors, tie_word_embeddings=True)
    both = write(tmp_path / "both", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tie_word_embeddings=True)
    one, other = (inspect(locate_files(ModelSpec(hf_repo=str(folder)))) for folder in (alone, both))
    assert (one.parameters, one.nbytes, one.strange) == (other.parameters, other.nbytes, other.strange)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_with_and_without_its_prefix(tmp_path: Path, prefix: str) -> None:
    tensors = gpt2(tmp_path / "gpt2", prefix=bool(prefix))
    found = inspect(locate_files(ModelSpec(hf_repo=str(tmp_path / "gpt2"))))
    assert found.proxy == preflight.ProxyStack(embed_key=f"{prefix}wte.weight", expected=3, matched=3, missing=())
    assert isinstance(found.layout, GPT2Layout)
    assert found.parameters == sum(tensor.size for key, tensor in tensors.items() if not key.endswith((".attn.bias", "masked_bias")))
    assert (found.dtypes, found.missing, found.strange) == (("F32",), (), ())


def test_gpt2_with_a_key_in_both_spellings(tmp_path: Path) -> None:
    tensors = gpt2(tmp_path / "gpt2")
    save_file(tensors | {"wte.weight": tensors["transformer.wte.weight"] + 1}, tmp_path / "gpt2" / WEIGHTS)
    refused("wte.weight: got a key for what .*wte.weight holds too; allowed: one of the two", hf_repo=str(tmp_path / "gpt2"))


@pytest.mark.parametrize("dropped", [{0}, {1}, {0, 1}])
def test_middle_keys_are_counted(tmp_path: Path, dropped: set[int]) -> None:
    """The proxy graph may do without; opening the whole graph does not."""
    lacking = [O_PROJ.format(layer) for layer in sorted(dropped)]
    folder = write(tmp_path / "tiny", {key: tensor for key, tensor in weights().items() if key not in lacking})
    found = inspect(locate_files(ModelSpec(hf_repo=str(folder))))
    assert (found.proxy.expected, found.proxy.matched, found.proxy.missing) == (2, 2 - len(dropped), tuple(lacking))
    assert found.missing == tuple(lacking)
    with pytest.raises(ContractError, match=f"got no {lacking[0]}"):
        checkpoint.open_checkpoint(folder)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("layers", [40, 2**31 - 1])
def test_missing_keys_are_listed_up_to_32(tmp_path: Path, layers: int) -> None:
    found = inspect(locate_files(ModelSpec(hf_repo=str(write(tmp_path / "tiny", weights(), num_hidden_layers=layers)))))
    assert (found.proxy.expected, found.proxy.matched) == (layers, 2)
    assert found.proxy.missing == tuple(O_PROJ.format(layer) for layer in range(2, 34))
    assert len(found.missing) == 32


def test_a_key_that_has_no_place_is_listed(tmp_path: Path) -> None:
    names = ("a.lora_A", "h.0.attn.bias", "model.layers.2.mlp.up_proj.weight", "wpe.weight")
    extra = {name: np.zeros(3, np.float32) for name in names}
    found = inspect(locate_files(ModelSpec(hf_repo=str(write(tmp_path / "tiny", weights() | extra)))))
    assert found.strange == names


EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({EMBEDDING: None}, "config.json: got shards without an embedding; allowed: one of wte.weight, transformer.wte.weight, "),
        ({EMBEDDING: np.zeros((14, 11), np.float32)}, r"got shape \[14, 11\]; allowed: \[14, 10\], vocab_size and hidden_size"),
        ({EMBEDDING: np.zeros((15, 10), np.float32)}, r"embed_tokens.weight: got shape \[15, 10\]"),
        ({EMBEDDING: np.zeros(140, np.float32)}, r"embed_tokens.weight: got shape \[140\]"),
        ({EMBEDDING: np.zeros((14, 10), np.float64)}, r"embed_tokens.weight: got F64\[14, 10\]; allowed: F32, BF16, F16 of shape"),
        ({V: np.zeros((12, 10), np.int8)}, r"v_proj.weight: got I8\[12, 10\]; allowed: F32, BF16, F16 of shape \[12, 10\]"),
        ({V: np.zeros((10, 12), np.float32)}, r"v_proj.weight: got F32\[10, 12\]; allowed: .* of shape \[12, 10\]"),
        ({"wte.weight": np.zeros((14, 10), np.float32)}, "model_type: got llama, and weights with wte.weight; allowed: the architecture"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(tmp_path: Path, changed: Mapping[str, np.ndarray | None], message: str) -> None:
    """GPT-2's name of the embedding comes before Llama's."""
    tensors = {key: tensor for key, tensor in (weights() | changed).items() if tensor is not None}
    refused(message, hf_repo=str(write(tmp_path / "tiny", tensors)))


def test_the_key_is_in_two_shards(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    save_file({V: weights()[V]}, folder / "more.safetensors")
    shards = (str(folder / WEIGHTS), str(folder / "more.safetensors"))
    refused("got a key that .* has too; allowed: each key once", hf_repo=str(folder), weight_shards=shards)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model_type": "gemma2"}', b'{"a": 1, "a": 2}', b"", b"\xff"])
def test_a_config_that_is_not_sound(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path / "tiny")
    (folder / "config.json").write_bytes(content)
    assert refused("got ", hf_repo=str(folder)).startswith(str(folder / "config.json"))


def test_files_that_went_away_between(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    (folder / "tokenizer.json").write_text("{}")
    found = locate_files(ModelSpec(hf_repo=str(folder)))
    for path in (found.tokenizer_json, found.shards[0], found.config_json):
        assert path is not None
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ContractError, match=f"^{path}: got "):
            inspect(found)
        path.write_bytes(content)


# Hostile indexes

KEYS = st.sampled_from(sorted(weights())) | st.text(max_size=6)
SHARDS = st.sampled_from([WEIGHTS, "model-00001-of-00002.safetensors", "../x.safetensors", "/etc/passwd", "\0.safetensors", "..", ""])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


@given(
    where=st.dictionaries(KEYS, SHARDS | ANY, max_size=6) | ANY,
    rest=st.dictionaries(st.text(max_size=4), ANY, max_size=2),
    whole=st.booleans(),
)
def test_any_index_is_read_or_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, where: Any, rest: dict[str, Any], whole: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile"
    if not folder.is_dir():
        write(folder)
    if whole and isinstance(where, dict):
        where = dict.fromkeys(weights(), WEIGHTS) | where
    (folder / INDEX).write_text(json.dumps(rest | {"weight_map": where}))
    try:
        found = inspect(locate_files(ModelSpec(hf_repo=str(folder))))
    except ContractError as error:
        place = error.place
    else:
        place = str(found.files.shards[0])
        assert found.files.shards == (folder / WEIGHTS,)
    assert place.startswith(str(folder))


# Speed


def test_140_gb_in_100_shards_take_under_a_second(tmp_path: Path) -> None:
    """The files are sparse: whoever read a weight of them would read 141 GB of zeros."""
    assert sparse_model(tmp_path / "model", shards=100) > 140e9
    spec = ModelSpec(hf_repo=str(tmp_path / "model"))
    started = time.perf_counter()
    found = inspect(locate_files(spec))
    assert time.perf_counter() - started < 1
    assert (len(found.files.shards), found.parameters, found.dtypes) == (100, 70_553_706_496, ("BF16",))
    assert (found.proxy.matched, found.missing, found.strange, found.layout.options) == (80, (), (), ("rope_scaling.llama3",))
    with safe_open(found.files.shards[3], framework="numpy") as file:
        assert len(list(file.keys())) > 0
