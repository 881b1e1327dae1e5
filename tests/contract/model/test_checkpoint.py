"""Checkpoints: what is opened, what is read from it, and by which name."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.errors import ContractError, MissingError
from contract.model import checkpoint, zoo
from contract.model.checkpoint import load, locate, open_checkpoint, open_files, require_finite
from contract.model.preflight import locate_files
from contract.run.spec import ModelSpec
from contract.worker import files
from tests.contract.model.tiny_checkpoint import (
    CONFIG,
    WEIGHTS,
    Q,
    V,
    weights,
    write,
    write_index,
    write_sharded,
)


def test_opens_every_weight_by_its_name_and_content_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    opened = open_checkpoint(folder)
    assert (opened.name, opened.path, opened.layout.head_dim) == ("tiny", folder, 6)
    assert len(opened.tensors) == len(weights()) == 3 + 2 * (7 + 4 + 2)
    reference = opened.tensors["layers.1.q_proj.bias"]
    assert reference.tensor == f"{Q}.bias"
    assert reference.path == str(folder / WEIGHTS)
    assert reference.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    np.testing.assert_array_equal(files.load(reference), weights()[f"{Q}.bias"])
    assert open_checkpoint(folder, name="other").name == "other"


def test_a_reference_holds_in_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    opened = open_checkpoint(Path("tiny"))
    monkeypatch.chdir("/")
    assert load(opened, "final_norm").shape == (10,)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    tensors = weights()
    where = write_sharded(tmp_path / "tiny", tensors)
    opened = open_checkpoint(tmp_path / "tiny")
    for name, reference in opened.tensors.items():
        assert Path(reference.path).name == where[reference.tensor]
        np.testing.assert_array_equal(load(opened, name), tensors[reference.tensor])


def test_an_index_may_name_a_single_file(tmp_path: Path) -> None:
    """As mlx-lm writes it."""
    folder = write(tmp_path / "tiny")
    write_index(folder, dict.fromkeys(weights(), WEIGHTS))
    assert load(open_checkpoint(folder), "final_norm").any()


def test_files_may_be_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    write(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", WEIGHTS):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert load(open_checkpoint(tmp_path / "snapshot"), "final_norm").any()


def test_files_that_were_named_one_by_one(tmp_path: Path) -> None:
    tensors = weights()
    where = write_sharded(tmp_path / "tiny", tensors)
    shards = tuple(str(tmp_path / "tiny" / name) for name in set(where.values()))
    found = locate_files(ModelSpec(config_json=str(tmp_path / "tiny" / "config.json"), weight_shards=shards))
    opened = open_files(found, name="mine")
    assert (opened.name, opened.path) == ("mine", tmp_path / "tiny")
    assert all(np.array_equal(load(opened, name), tensors[reference.tensor]) for name, reference in opened.tensors.items())


PATTERNS = np.arange(2**16, dtype=np.uint16)


def widen_bfloat16(bits: int) -> float:
    """bfloat16 is the upper half of a float32."""
    return float(struct.unpack("<f", struct.pack("<HH", 0, bits))[0])


def widen_float16(bits: int) -> float:
    """binary16 of IEEE 754, as Python's struct reads it."""
    return float(struct.unpack("<e", struct.pack("<H", bits))[0])


@pytest.mark.parametrize(("dtype", "widen"), [(ml_dtypes.bfloat16, widen_bfloat16), (np.float16, widen_float16)])
def test_every_narrow_value_widens_exactly(tmp_path: Path, dtype: type, widen: Callable[[int], float]) -> None:
    tensors = weights()
    tensors["model.embed_tokens.weight"] = np.resize(PATTERNS.view(dtype), (2**14, 10))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    got = load(open_checkpoint(write(tmp_path / "tiny", tensors, vocab_size=2**14)), "embedding")
    assert (got.dtype, got.shape) == (np.float32, (2**14, 10))
    np.testing.assert_array_equal(got.ravel()[: 2**16], np.array([widen(bits) for bits in range(2**16)], np.float32))


def test_float32_comes_bit_for_bit(tmp_path: Path) -> None:
    tensors = weights()
    tensors["model.norm.weight"][:5] = [-0.0, 1e-45, -1.2e-38, 3.4e38, np.nan]
    assert load(open_checkpoint(write(tmp_path / "tiny", tensors)), "final_norm").tobytes() == tensors["model.norm.weight"].tobytes()


def test_a_weight_that_it_lacks_is_named(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path / "tiny", tie_word_embeddings=True))
    with pytest.raises(ContractError, match="tiny: got no weight 'lm_head'; allowed: one of 28: embedding, "):
        load(opened, "lm_head")


def test_a_file_that_changed_since_is_not_read(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path / "tiny"))
    save_file({key: tensor + 1 for key, tensor in weights().items()}, tmp_path / "tiny" / WEIGHTS)
    for read in (lambda: load(opened, "final_norm"), lambda: require_finite(opened), lambda: opened.tensors["final_norm"]):
        with pytest.raises(ContractError, match=r"model\.safetensors: got a file that is gone or was changed; "):
            read()
    (tmp_path / "tiny" / WEIGHTS).unlink()
    for read in (lambda: load(opened, "final_norm"), lambda: require_finite(opened), lambda: opened.tensors["final_norm"]):
        with pytest.raises(ContractError, match=r"model\.safetensors: got a file that is gone or was changed; "):
            read()


def test_a_file_is_hashed_when_its_weights_go_to_a_worker_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    write_sharded(tmp_path / "tiny", weights())
    monkeypatch.setattr(files, "sha256_of", lambda path: hashed.append(path.name) or "0" * 64)
    opened = open_checkpoint(tmp_path / "tiny")
    load(opened, "final_norm")
    require_finite(opened)
    assert (list(opened.tensors), len(opened.tensors), hashed) == (list(opened.placed), len(weights()), [])
    reference = opened.tensors["final_norm"]
    assert (reference.sha256, hashed) == ("0" * 64, [Path(reference.path).name])


# NaN and infinity


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", [1, 36, 2**22])
def test_a_weight_that_is_not_finite_is_counted(
    tmp_path: Path, dtype: type, bad: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_BLOCK_ELEMENTS", block)
    tensors = weights()
    tensors[V] = tensors[V].astype(dtype)
    tensors[V][[0, 5, -1], [0, 3, -1]] = bad
    opened = open_checkpoint(write(tmp_path / "tiny", tensors))
    with pytest.raises(ContractError, match="got 3 NaN or infinite values; allowed: none; ") as caught:
        require_finite(opened)
    assert caught.value.place == f"{tmp_path / 'tiny' / WEIGHTS}: {V}"


def test_finite_weights_pass_with_progress(tmp_path: Path) -> None:
    tensors = weights()
    tensors[V][0, :3] = [np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-45]
    calls: list[tuple[int, int]] = []
    require_finite(open_checkpoint(write(tmp_path / "tiny", tensors)), lambda *call: calls.append(call))
    assert calls == [(done, 29) for done in range(1, 30)]


# By name


def test_the_real_model_by_its_name() -> None:
    opened = locate("smollm2-135m")
    assert (opened.name, opened.path) == ("smollm2-135m", zoo.locate("smollm2-135m").path)
    assert len(opened.tensors) == 2 + 30 * 9
    assert {reference.sha256 for reference in opened.tensors.values()} == {zoo.KNOWN["smollm2-135m"].weights_sha256}
    assert (opened.layout.num_attention_heads, opened.layout.num_key_value_heads, opened.layout.head_dim) == (9, 3, 64)
    assert load(opened, "layers.29.k_proj").shape == (192, 576)
    require_finite(opened)


def test_a_known_model_whose_bits_are_not_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "tiny")
    found = zoo.ModelFolder(path=folder, weights=folder / WEIGHTS, sha256="0" * 64, config=dict(CONFIG))
    monkeypatch.setattr(zoo, "locate", lambda name: found)
    published = zoo.KNOWN["smollm2-135m"].weights_sha256
    with pytest.raises(ContractError, match=f"got SHA-256 [0-9a-f]{{64}}; allowed: {published}, .* run: finetune fetch .* --force"):
        locate("smollm2-135m")


def test_a_folder_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelling in ("owner/tiny", "./owner/tiny", str(tmp_path / "owner" / "tiny"), "~/owner/tiny"):
        assert locate(spelling).path == tmp_path / "owner" / "tiny"


@pytest.mark.parametrize("name", ["absent", "./absent/model", "/absent/model", "~/absent/model", "../absent"])
def test_a_name_of_nothing(name: str) -> None:
    message = f"model: got '{name}', which is no model and no folder; allowed: smollm2-135m, a folder with config.json"
    with pytest.raises(ContractError, match=message):
        locate(name)


def test_what_was_not_fetched_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("smollm2-135m", "someone/model"):
        with pytest.raises(MissingError, match=f"run: finetune fetch {name}"):
            locate(name)


def test_a_hub_checkpoint_may_have_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sharded(tmp_path / "snapshot", weights())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path / "snapshot"))
    monkeypatch.chdir(tmp_path)
    opened = locate("someone/model")
    assert (opened.name, len({reference.path for reference in opened.tensors.values()})) == ("someone/model", 3)
    assert os.listdir(tmp_path) == ["snapshot"]
