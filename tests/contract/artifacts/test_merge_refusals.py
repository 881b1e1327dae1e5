"""What a merge refuses, before a byte of the target is there; and that nothing is ever left half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.artifacts import merge as merging
from contract.artifacts import v3
from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.merge import merge
from contract.errors import ContractError, EnvironmentUnfit
from contract.model import whole_folder
from tests.contract.artifacts.adapter_cases import (
    GPT2,
    LINEARS,
    LLAMA,
    Tensors,
    adapter_on,
    content,
    gpt2_tensors,
    llama_tensors,
    refused,
    write_base,
)

Q = "model.layers.1.self_attn.q_proj.weight"


def base_of(tmp_path: Path, tensors: Tensors | None = None, config: Any = LLAMA) -> Path:
    return write_base(tmp_path / "base", llama_tensors() if tensors is None else tensors, config)


def at_keys(adapter: Adapter, **keys: Place) -> Adapter:
    places = dict(adapter.places) | {name.replace("__", "."): place for name, place in keys.items()}
    return Adapter(**(vars(adapter) | {"places": places}))


def nothing_left(tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_key_that_is_missing_or_of_another_shape_or_dtype(tmp_path: Path) -> None:
    tensors = llama_tensors()
    for spoilt, message in (
        ({key: tensor for key, tensor in tensors.items() if key != Q}, Q),
        (tensors | {Q: tensors[Q][:-1]}, "shape"),
        (tensors | {Q: np.ascontiguousarray(tensors[Q].T)}, "shape"),
        (tensors | {Q: tensors[Q].reshape(-1)}, "shape"),
        (tensors | {Q: tensors[Q].astype(np.uint8)}, "U8"),
        (tensors | {"model.norm.weight": tensors["model.norm.weight"].astype(np.float64)}, "F64"),
    ):
        with pytest.raises(ContractError, match=message) as error:
            merge(adapter_on(LLAMA, LINEARS), base_of(tmp_path, spoilt), tmp_path / "out")
        refused(error)
        nothing_left(tmp_path)


@pytest.mark.parametrize("facts", [{"vocab": 15}, {"d_model": 11}])
def test_an_adapter_of_another_base(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match=next(iter(facts))) as error:
        merge(adapter_on(LLAMA, LINEARS, **facts), base_of(tmp_path), tmp_path / "out")
    refused(error)
    nothing_left(tmp_path)


def test_two_linears_in_one_place_and_parts_that_overlap_or_reach_out(tmp_path: Path) -> None:
    twice = at_keys(adapter_on(LLAMA, ("layers.0.q_proj", "layers.1.q_proj")), layers__0__q_proj=Place(key=Q))
    with pytest.raises(ContractError, match=r"layers\.1\.q_proj.*layers\.0\.q_proj"):
        merge(twice, base_of(tmp_path), tmp_path / "out")
    key = "h.0.attn.c_attn.weight"
    parts = adapter_on(GPT2, ("layers.0.q_proj", "layers.0.k_proj"))
    base = base_of(tmp_path, gpt2_tensors(), GPT2)
    for offset in (0, 5, 13, 10**6):
        with pytest.raises(ContractError, match=r"lies too|shape"):
            merge(at_keys(parts, layers__0__k_proj=Place(key=key, offset=offset)), base, tmp_path / "out")
    with pytest.raises(ContractError, match="shape"):  # a third, said to be the whole
        merge(at_keys(parts, layers__0__k_proj=Place(key=key)), base, tmp_path / "out")
    nothing_left(tmp_path)


def test_the_embedding_is_no_linear(tmp_path: Path) -> None:
    embedding = Place(key="model.embed_tokens.weight")
    head = adapter_on(LLAMA, ("lm_head",))
    with pytest.raises(ContractError, match="embedding"):  # this base's head is not tied to it
        merge(at_keys(head, lm_head=embedding), base_of(tmp_path), tmp_path / "out")
    other = Adapter(
        **(vars(head) | {"matrices": {"mid0": head.matrices["lm_head"]}, "places": {"mid0": embedding}, "layer_order": ("mid0",)})
    )
    tied = base_of(tmp_path, llama_tensors(tie_word_embeddings=True), dict(LLAMA) | {"tie_word_embeddings": True})
    with pytest.raises(ContractError, match="embedding"):
        merge(other, tied, tmp_path / "out")
    nothing_left(tmp_path)


def test_values_that_are_not_finite_once_merged(tmp_path: Path) -> None:
    adapter = adapter_on(LLAMA, LINEARS)
    large = {logical: (np.full_like(a, 3e38), np.full_like(b, 3e38)) for logical, (a, b) in adapter.matrices.items()}
    with pytest.raises(ContractError, match="NaN or infinite"):
        merge(Adapter(**(vars(adapter) | {"matrices": large})), base_of(tmp_path), tmp_path / "out")
    tensors = llama_tensors()
    tensors[Q][3, 3] = np.nan
    with pytest.raises(ContractError, match=Q):
        merge(adapter, base_of(tmp_path, tensors), tmp_path / "out")
    nothing_left(tmp_path)


def test_a_shard_outside_of_the_folder_is_never_opened(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", llama_tensors(), LLAMA, shards=2)
    index = base / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    for name in ("../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x\0.safetensors"):
        index.write_text(json.dumps({"weight_map": where["weight_map"] | {Q: name}}))
        with pytest.raises(ContractError, match=r"model\.safetensors\.index\.json"):
            merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    nothing_left(tmp_path)


@pytest.mark.parametrize("there", ["a file", "another folder", "the base", "above the base", "the adapter"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_there_is_never_replaced(tmp_path: Path, there: str, force: bool) -> None:
    base, out = base_of(tmp_path), tmp_path / "out"
    match there:
        case "a file":
            out.write_text("mine")
        case "another folder" | "the adapter":
            out.mkdir()
            (out / "mine").write_text("mine")
        case "the base":
            out = base
        case "above the base":
            out = tmp_path
    before = content(tmp_path)
    with pytest.raises(ContractError) as error:
        merge(adapter_on(LLAMA, LINEARS), base, out, force=force, sources=(tmp_path / "out",) if there == "the adapter" else ())
    refused(error)
    assert content(tmp_path) == before


def test_force_replaces_a_merged_model_and_an_empty_folder_needs_none(tmp_path: Path) -> None:
    base, out = base_of(tmp_path), tmp_path / "out"
    out.mkdir()
    merge(adapter_on(LLAMA, LINEARS), base, out)
    first = content(out)
    with pytest.raises(ContractError, match="new or empty"):
        merge(adapter_on(LLAMA, LINEARS, seed=6), base, out)
    assert content(out) == first
    merge(adapter_on(LLAMA, LINEARS, seed=6), base, out, force=True)
    assert content(out).keys() == first.keys()
    assert content(out) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


@pytest.mark.parametrize("kind", ["an adapter", "a base", "above an input"])
def test_force_replaces_nothing_but_a_merged_model_that_holds_no_input(tmp_path: Path, kind: str) -> None:
    base, out = base_of(tmp_path), tmp_path / "out"
    match kind:
        case "an adapter":
            v3.write(out, adapter_on(LLAMA, LINEARS))
        case "a base":
            write_base(out, llama_tensors(), LLAMA)
        case "above an input":
            merge(adapter_on(LLAMA, LINEARS), base, out)
            base = write_base(out / "base", llama_tensors(), LLAMA)
    before = content(tmp_path)
    with pytest.raises(ContractError, match="one above it" if kind == "above an input" else "with --force a merged model"):
        merge(adapter_on(LLAMA, LINEARS), base, out, force=True)
    assert content(tmp_path) == before


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    base, out = base_of(tmp_path), tmp_path / "out"
    merge(adapter_on(LLAMA, LINEARS), base, out)
    before = content(out)

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    for target in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            merge(adapter_on(LLAMA, LINEARS, seed=6), base, target, force=True, progress=interrupt)
    assert content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_an_interruption_between_the_two_renames_of_a_replacement_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = base_of(tmp_path), tmp_path / "out"
    merge(adapter_on(LLAMA, LINEARS), base, out)
    before = content(out)

    def interrupted(built: Path, target: Path, *, aside: Path) -> bool:
        target.rename(aside)
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_folder, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(adapter_on(LLAMA, LINEARS, seed=6), base, out, force=True)
    assert content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_a_base_that_shrinks_meanwhile_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path)

    def shrink(stage: str, done: int, total: int) -> None:
        (base / "model.safetensors").write_bytes(b"")

    with pytest.raises(ContractError, match="shorter"):
        merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out", progress=shrink)
    nothing_left(tmp_path)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(EnvironmentUnfit, match="free"):
        merge(adapter_on(LLAMA, LINEARS), base_of(tmp_path), tmp_path / "out")
    nothing_left(tmp_path)


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"quantization_config": {"bits": 4}}, {"vocab_size": "14"}])
def test_a_base_that_is_not_honoured_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match=next(iter(config))) as error:
        merge(adapter_on(LLAMA, LINEARS), base_of(tmp_path, config=dict(LLAMA) | config), tmp_path / "out")
    refused(error)
    nothing_left(tmp_path)


def test_a_damaged_base_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    weights = (base / "model.safetensors").read_bytes()
    for content_ in (weights[:-1], weights[:100], b"", weights + b"x", b"\xff" * 8 + weights[8:]):
        (base / "model.safetensors").write_bytes(content_)
        with pytest.raises(ContractError, match=r"model\.safetensors"):
            merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    (base / "model.safetensors").unlink()
    with pytest.raises(ContractError):
        merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    save_file(llama_tensors(), base / "model.safetensors")
    (base / "merge_manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"merge_manifest\.json"):
        merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    nothing_left(tmp_path)
