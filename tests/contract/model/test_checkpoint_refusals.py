"""Every way in which a checkpoint can be wrong, and what is said then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from contract.errors import ContractError, brief
from contract.model import checkpoint
from contract.model.checkpoint import load, open_checkpoint
from tests.contract.model.tiny_checkpoint import (
    INDEX,
    WEIGHTS,
    V,
    refused,
    weights,
    write,
    write_index,
    write_raw,
    write_sharded,
)

# Files that are not there, or not whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.json: got no such file; allowed: a file; give a checkpoint's folder"),
        (b"{", r"config\.json: got text that is no JSON"),
        (b"\xff\xfe", r"config\.json: got byte 0xff"),
        (b"[1]", r"config\.json: got a list; allowed: an object"),
        (b"[" * 100_000, r"config\.json: got values nested too deep"),
        (b'{"model_type": "llama", "model_type": "llama"}', r"config\.json: got 'model_type' twice"),
        (b'{"model_type": "gemma2"}', r"config\.json: model_type: got 'gemma2'; allowed: gpt2, llama, "),
    ],
)
def test_a_config_that_is_not_sound(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = write(tmp_path / "tiny")
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    refused(folder, message)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, r"tiny: got neither model\.safetensors nor model\.safetensors\.index\.json; allowed: a checkpoint's folder")


def test_weights_beside_shards_of_another_save(tmp_path: Path) -> None:
    """save_pretrained into a folder that holds an older save leaves the older one's model.safetensors, which transformers then loads."""
    write(tmp_path / "tiny")
    write_sharded(tmp_path / "tiny", weights())
    refused(tmp_path / "tiny", r"tiny: got model\.safetensors, and model\.safetensors\.index\.json that does not name it; ")


@given(kept=st.integers(0, 10**6), sharded=st.booleans())
def test_a_truncated_file_is_named_with_got_and_expected_bytes(tmp_path_factory: pytest.TempPathFactory, kept: int, sharded: bool) -> None:
    folder = tmp_path_factory.mktemp("cut") / "tiny"
    if sharded:
        write_sharded(folder, weights())
    else:
        write(folder)
    path = sorted(folder.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    kept %= len(content)
    path.write_bytes(content[:kept])
    message = refused(folder, ": got [0-9]+ bytes; ")
    header = 8 + int.from_bytes(content[: 8 if kept >= 8 else 0], "little")
    allowed = f"{header} at least, by the length of its header" if kept < header else f"{len(content)}, by its header"
    assert message == f"{path}: got {kept} bytes; allowed: {allowed}; download the checkpoint again"


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    with open(folder / WEIGHTS, "ab") as file:
        file.write(b"more")
    size = (folder / WEIGHTS).stat().st_size
    refused(folder, f"got {size} bytes; allowed: {size - 4}, by its header; ")


@given(data=st.data())
def test_a_damaged_header_is_refused_or_changes_nothing_that_is_used(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = write(tmp_path_factory.mktemp("flip") / "tiny")
    content = bytearray((folder / WEIGHTS).read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3), "bytes to change")):
        content[data.draw(st.integers(0, length - 1), "at")] = data.draw(st.integers(0, 255), "to")
    (folder / WEIGHTS).write_bytes(content)
    try:
        opened = open_checkpoint(folder)
    except ContractError as error:
        message = str(error)
    else:
        message = ""
        assert all(load(opened, name).dtype == np.float32 for name in opened.tensors)
    assert "\n" not in message


@pytest.mark.parametrize(
    "header",
    [
        '["a"]', "{}x", '"a"', "null", '{"a": 3}', '{"a": {}}', '{"a": {"data_offsets": []}}', '{"a": {"data_offsets": ["0", "4"]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]}}', '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a\\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "\\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', '{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_a_header_that_is_none_of_safetensors(tmp_path: Path, header: str) -> None:
    folder = write(tmp_path / "tiny")
    write_raw(folder / WEIGHTS, header, b"1234")
    refused(folder, r"model\.safetensors: header")


def test_a_key_twice_in_one_header(tmp_path: Path) -> None:
    """safetensors 0.8 takes the last one in silence."""
    folder = write(tmp_path / "tiny")
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    write_raw(folder / WEIGHTS, f"{{{entry}, {entry}}}", b"1234")
    refused(folder, r"model\.safetensors: header: got 'a' twice")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made by hand."""
    folder = write(tmp_path / "tiny")

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    refused(folder, r"model\.safetensors: got Permission denied; allowed: a file to read; see to its permissions")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    refused(folder, r"config\.json: got Permission denied; allowed: a file to read; see to its rights")


# An index that is not sound


@pytest.mark.parametrize(
    "shard",
    [
        "../other.safetensors", "/etc/other.safetensors", "sub/other.safetensors", "..\\other.safetensors", "other.bin", ".safetensors",
        "", "..", "model.safetensors\0", "https://host.invalid/other.safetensors", 5, None, ["other.safetensors"], "a\nb.safetensors",
        244 * "a" + ".safetensors", 122 * "é" + ".safetensors",
    ],
)  # fmt: skip
def test_a_shard_outside_of_the_folder_is_never_opened(tmp_path: Path, shard: object) -> None:
    folder = write(tmp_path / "tiny")
    save_file(weights(), tmp_path / "other.safetensors")
    write_index(folder, dict.fromkeys(weights(), WEIGHTS) | {V: shard})
    message = refused(folder, "weight_map, .*: got .*; allowed: a safetensors file in the same folder; download")
    assert repr(V) in message
    assert f"got {brief(shard)}; " in message


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "[]", "{"])
def test_an_index_without_a_map(tmp_path: Path, index: str) -> None:
    folder = write(tmp_path / "tiny")
    (folder / INDEX).write_text(index)
    refused(folder, r"index\.json(: weight_map)?: got ")


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    where = write_sharded(tmp_path / "tiny", weights())
    (tmp_path / "tiny" / where[V]).unlink()
    refused(tmp_path / "tiny", f"{where[V]}: got no such file; allowed: a safetensors file; download")


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    tensors = weights()
    where = write_sharded(tmp_path / "tiny", tensors)
    other = next(shard for shard in where.values() if shard != where[V])
    save_file({key: tensors[key] for key in tensors if where[key] == other} | {V: tensors[V]}, tmp_path / "tiny" / other)
    assert repr(V) in refused(tmp_path / "tiny", "got a key that .* has too; allowed: each key once; ")


@pytest.mark.parametrize("said", ["another", "none"])
def test_an_index_at_odds_with_its_shards(tmp_path: Path, said: str) -> None:
    where = write_sharded(tmp_path / "tiny", weights())
    other = next(shard for shard in where.values() if shard != where[V])
    write_index(tmp_path / "tiny", where | {V: other} if said == "another" else {key: where[key] for key in where if key != V})
    got = other if said == "another" else "nothing"
    refused(tmp_path / "tiny", f"{INDEX}: weight_map, '{V}': got {got}, and it lies in {where[V]}; ")


def test_an_index_with_a_key_that_no_shard_has(tmp_path: Path) -> None:
    where = write_sharded(tmp_path / "tiny", weights())
    write_index(tmp_path / "tiny", where | {"model.extra": where[V]})
    refused(tmp_path / "tiny", f"{INDEX}: weight_map, 'model.extra': got {where[V]}, and it lies in no shard; ")


# Keys that are not what config.json describes


@pytest.mark.parametrize("key", sorted(weights()))
def test_each_missing_key_is_named(tmp_path: Path, key: str) -> None:
    tensors = weights()
    del tensors[key]
    assert f"tiny: got no {key}; allowed: all that config" in refused(write(tmp_path / "tiny", tensors), "take a whole checkpoint")


@pytest.mark.parametrize("key", sorted(weights()))
@pytest.mark.parametrize("damage", ["one more", "turned", "float64", "int8"])
def test_each_wrong_shape_or_dtype_is_named(tmp_path: Path, key: str, damage: str) -> None:
    tensors = weights()
    right = list(tensors[key].shape)
    tensors[key] = {
        "one more": lambda weight: np.concatenate([weight, weight[:1]]),
        "turned": lambda weight: weight[None] if weight.ndim == 1 else weight.T.copy(),
        "float64": lambda weight: weight.astype(np.float64),
        "int8": lambda weight: weight.astype(np.int8),
    }[damage](tensors[key])
    message = refused(write(tmp_path / "tiny", tensors), r"allowed: F32, BF16, F16 of shape \[")
    dtype = {"float64": "F64", "int8": "I8"}.get(damage, "F32")
    assert f"{key}: got {dtype}{list(tensors[key].shape)}; allowed: F32, BF16, F16 of shape {right}; " in message


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("model.layers.0.mlp.up_proj.bias", ", mlp_bias false"),
        ("model.layers.2.mlp.up_proj.weight", ""),
        ("model.layers.0.self_attn.q_norm.weight", ""),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", ""),
        ("model.layers.0.self_attn.q_proj.weight_scale", ""),
        ("model.norm.bias", ""),
        ("lm_head.bias", ""),
        ("inv_freq", ""),
        ("a\nb", ""),
    ],
)
def test_an_extra_key_is_refused_by_name(tmp_path: Path, key: str, why: str) -> None:
    folder = write(tmp_path / "tiny", weights() | {key: np.zeros(3, np.float32)})
    message = f"{key!r}: got a tensor that has no place; allowed: what config.json describes (llama{why}); "
    assert message in refused(folder, "take one that fits")


def test_biases_that_config_denies_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", weights(), attention_bias=False)
    refused(folder, r"'model\.layers\.0\.self_attn\.k_proj\.bias': got a tensor that has no place; .*, attention_bias false\); ")


@pytest.mark.parametrize("key", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_saved_frequencies_change_nothing(tmp_path: Path, key: str) -> None:
    opened = open_checkpoint(write(tmp_path / "tiny", weights() | {key: np.zeros(3, np.float32)}))
    assert opened.tensors.keys() == open_checkpoint(write(tmp_path / "plain")).tensors.keys()


@pytest.mark.parametrize("block", [1, 24, 2**22])
def test_a_tied_head_may_lie_there_as_a_copy(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_BLOCK_ELEMENTS", block)
    tensors = weights(tie_word_embeddings=True)
    folder = write(tmp_path / "tiny", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tie_word_embeddings=True)
    assert "lm_head" not in open_checkpoint(folder).tensors


@pytest.mark.parametrize("damage", ["last bit", "shape", "dtype"])
def test_a_tied_head_that_is_no_copy_is_refused(tmp_path: Path, damage: str) -> None:
    """transformers 5 does not tie the two then, whatever config.json says."""
    tensors = weights(tie_word_embeddings=True)
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] = np.nextafter(head[-1, -1], np.float32(9))
    tensors["lm_head.weight"] = {"last bit": head, "shape": head[:-1], "dtype": head.astype(np.float16)}[damage]
    folder = write(tmp_path / "tiny", tensors, tie_word_embeddings=True)
    refused(
        folder,
        r"lm_head\.weight: got a tensor that is no copy of model\.embed_tokens\.weight; .* true; set it to false",
    )


@pytest.mark.timeout(20)
def test_more_layers_than_tensors_are_refused_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", weights(), num_hidden_layers=10**9)
    refused(folder, r"got no model\.layers\.2\.input_layernorm\.weight; allowed: all that config.json needs")
