"""Which files a contract's model means: a name, a folder, or files one by one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.numpy import save_file

from contract.errors import ContractError, ContractErrors, MissingError
from contract.model import preflight, zoo
from contract.model.layout import LlamaLayout
from contract.model.preflight import ModelFiles, inspect, locate_files
from contract.run.spec import ModelSpec
from contract.worker import files
from tests.contract.model.tiny_checkpoint import INDEX, WEIGHTS, V, weights, write, write_index, write_sharded


def refused(message: str, **spec: Any) -> str:
    with pytest.raises((ContractError, ContractErrors), match=message) as caught:
        inspect(locate_files(ModelSpec(**spec)))
    return str(caught.value)


def test_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    assert locate_files(ModelSpec(hf_repo=str(folder))) == ModelFiles(
        folder=folder, config_json=folder / "config.json", tokenizer_json=None, shards=(folder / WEIGHTS,), index=None
    )
    (folder / "tokenizer.json").write_text("{}")
    assert locate_files(ModelSpec(hf_repo=str(folder))).tokenizer_json == folder / "tokenizer.json"


def test_a_folder_of_shards(tmp_path: Path) -> None:
    where = write_sharded(tmp_path / "tiny", weights())
    found = locate_files(ModelSpec(hf_repo=str(tmp_path / "tiny")))
    assert ([path.name for path in found.shards], found.index) == (sorted(set(where.values())), tmp_path / "tiny" / INDEX)


def test_a_file_that_is_named_takes_the_place_of_the_folders_own(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other", vocab_size=21)
    (one / "tokenizer.json").write_text("{}")
    (other / "t.json").write_text("{}")
    named = {"config_json": other / "config.json", "tokenizer_json": other / "t.json", "weight_shards": (other / WEIGHTS,)}
    spec = {name: tuple(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in named.items()}
    found = locate_files(ModelSpec(hf_repo=str(one), **spec))
    assert found == ModelFiles(
        folder=one, config_json=named["config_json"], tokenizer_json=named["tokenizer_json"], shards=(other / WEIGHTS,), index=None
    )
    assert inspect(found).layout.vocab_size == 21
    assert locate_files(ModelSpec(**spec)) == ModelFiles(
        folder=None, config_json=found.config_json, tokenizer_json=found.tokenizer_json, shards=found.shards, index=None
    )


def test_the_order_of_shards_means_nothing(tmp_path: Path) -> None:
    where = write_sharded(tmp_path / "tiny", weights())
    paths = [str(tmp_path / "tiny" / name) for name in sorted(set(where.values()))]
    one, other = (
        ModelSpec(config_json=str(tmp_path / "tiny" / "config.json"), weight_shards=tuple(order)) for order in (paths, paths[::-1])
    )
    assert locate_files(one) == locate_files(other)
    assert inspect(locate_files(one)).parameters == sum(tensor.size for tensor in weights().values())


def test_paths_from_home_and_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("~/tiny", "tiny", "./tiny"):
        assert locate_files(ModelSpec(hf_repo=name)).folder == folder
    assert locate_files(ModelSpec(config_json="tiny/config.json", weight_shards=(f"~/tiny/{WEIGHTS}",))).shards == (folder / WEIGHTS,)


def test_the_known_model_without_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sha256_of", lambda path: pytest.fail(f"{path} is hashed"))
    found = inspect(locate_files(ModelSpec(hf_repo="smollm2-135m")))
    assert (found.parameters, found.nbytes, found.dtypes) == (134_515_008, 4 * 134_515_008, ("F32",))
    assert found.proxy == preflight.ProxyStack(embed_key="model.embed_tokens.weight", expected=30, matched=30, missing=())
    assert found.files.tokenizer_json is not None
    assert isinstance(found.layout, LlamaLayout)


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sharded(tmp_path / "snapshot", weights())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path / "snapshot"))
    assert locate_files(ModelSpec(hf_repo="someone/model")).folder == tmp_path / "snapshot"


def test_what_was_not_fetched_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("smollm2-135m", "someone/model"):
        with pytest.raises(MissingError, match=f"run: finetune fetch {name}"):
            locate_files(ModelSpec(hf_repo=name))


def test_a_known_model_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path)
    folder = zoo.default_folder("smollm2-135m")
    folder.mkdir(parents=True)
    (folder / zoo.MANIFEST).write_text("{}")
    assert "finetune fetch smollm2-135m --force" in refused("^model.hf_repo: got .* is damaged; ", hf_repo="smollm2-135m")


def test_everything_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ContractErrors) as caught:
        locate_files(
            ModelSpec(config_json="absent/config.json", tokenizer_json=str(tmp_path), weight_shards=("a.safetensors", "~nobody/b"))
        )
    assert [fault.place for fault in caught.value.faults] == [
        "model.config_json", "model.tokenizer_json", "model.weight_shards", "model.weight_shards",
    ]  # fmt: skip
    assert [fault.got.partition(" (")[0].rpartition(", ")[2] for fault in caught.value.faults[:3]] == [
        "which is not there", "which is a folder", "which is not there",
    ]  # fmt: skip


def test_nothing_named() -> None:
    with pytest.raises(ContractErrors) as caught:
        locate_files(ModelSpec())
    assert [(fault.place, fault.got) for fault in caught.value.faults] == [
        ("model.config_json", "nothing"),
        ("model.weight_shards", "nothing"),
    ]


@pytest.mark.parametrize("name", ["absent", "./absent/model", "~nobody/model", "a" * 400, "../absent"])
def test_a_name_of_nothing(name: str) -> None:
    refused("^model.hf_repo: got ", hf_repo=name)


def test_one_shard_twice_under_two_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    (folder / "link.safetensors").symlink_to(folder / WEIGHTS)
    shards = (str(folder / WEIGHTS), str(folder / "link.safetensors"))
    refused("model.weight_shards: got .* which are one file; allowed: each file once", hf_repo=str(folder), weight_shards=shards)


def test_a_shard_outside_of_the_folder_is_never_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    save_file(weights(), tmp_path / "other.safetensors")
    for shard in ("../other.safetensors", str(tmp_path / "other.safetensors")):
        write_index(folder, dict.fromkeys(weights(), WEIGHTS) | {V: shard})
        refused("weight_map, .*: got .*; allowed: a safetensors file in the same folder", hf_repo=str(folder))


def test_what_is_no_file_is_said_to_be_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused("model.config_json: got .*pipe, which is no file", hf_repo=str(write(tmp_path / "tiny")), config_json=str(tmp_path / "pipe"))


def test_a_name_that_no_file_can_have_is_said_shortly() -> None:
    assert len(refused("model.hf_repo: got .*File name too long", hf_repo="a" * 4096)) < 300
