"""The file-level merge: its arithmetic bit for bit, what it changes and what it copies, the same bytes each time."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from contract.artifacts.adapter import Adapter, Place, Quant
from contract.artifacts.delta import Delta, merged_tiles
from contract.artifacts.merge import merge
from contract.artifacts.merge_manifest import MANIFEST, content_sha256, read_manifest
from contract.errors import ContractError
from tests.contract.artifacts.adapter_cases import (
    DTYPES,
    LINEARS,
    LLAMA,
    Tensors,
    adapter_on,
    content,
    llama_tensors,
    merged_tensors,
    refused,
    write_base,
)
from tests.contract.artifacts.exact_merge import bits, by_hand, done

Q, DOWN = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_value_is_the_definition_s_bit_for_bit(tmp_path: Path, dtype: str, rslora: bool) -> None:
    """Base in each dtype; ranks, alphas and rslora that a merge which forgets one of them would miss."""
    tensors = {key: tensor.astype(DTYPES[dtype]) for key, tensor in llama_tensors().items()}
    adapter = adapter_on(LLAMA, LINEARS, rank=3, ranks={LINEARS[1]: 5}, alpha=7.0, alphas={LINEARS[1]: 0.3}, rslora=rslora)
    merged = merged_tensors(done(tmp_path, adapter, tensors, LLAMA))
    for logical, key, rank, alpha in ((LINEARS[0], Q, 3, 7.0), (LINEARS[1], DOWN, 5, 0.3)):
        scale = alpha / (rank**0.5 if rslora else rank)
        wanted = by_hand(tensors[key].astype(np.float32), *adapter.matrices[logical], scale)
        assert merged[key].dtype == np.float32
        assert bits(merged[key]) == bits(wanted)
        assert not np.array_equal(merged[key], tensors[key].astype(np.float32))


@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 2**32 - 1), spread=st.integers(0, 30),
    tile=st.integers(1, 7), transposed=st.booleans(), cancels=st.booleans(),
)  # fmt: skip
def test_the_arithmetic_is_the_definition_s_for_any_sizes_and_tiles(
    sizes: tuple[int, int, int], scale: float, seed: int, spread: int, tile: int, transposed: bool, cancels: bool
) -> None:
    """Values over many binades, and a rank that takes the first one back, so that every rounding shows; rows in tiles of any height."""
    rank, out, in_ = sizes
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)).astype(np.float32)

    a, b, weight = drawn(rank, in_), drawn(out, rank), drawn(out, in_)
    if cancels:
        a, b, weight, rank = np.vstack([a, a[:1]]), np.hstack([b, -b[:, :1]]), 0 * weight, rank + 1
    key = "h.0.attn.c_proj.weight" if transposed else "x.weight"
    adapter = Adapter(
        matrices={"x": (a, b)}, places={"x": Place(key=key)}, layer_order=("x",), rank=rank, alpha=float(np.float32(scale) * rank)
    )
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    tiles = (stored[row : row + tile] for row in range(0, len(stored), tile))
    deltas = [Delta(adapter=adapter, logical="x", row=0, column=0)]
    got = np.concatenate([after for _, after in merged_tiles(tiles, deltas, place="x")])
    wanted = by_hand(weight, a, b, adapter.scale("x"))
    assert bits(got.T if transposed else got) == bits(wanted)


@pytest.mark.parametrize(("b", "delta"), [((2.0**30, -(2.0**30), 1.0), 1.0), ((1.0, 2.0**30, -(2.0**30)), 0.0)])
def test_ranks_are_summed_in_ascending_order(b: tuple[float, ...], delta: float) -> None:
    """2^60 swallows a 1 that comes before it, and not one that comes after it was taken back."""
    matrices = {"x": (np.array([[abs(value)] for value in b], np.float32), np.array([b], np.float32))}
    adapter = Adapter(matrices=matrices, places={"x": Place(key="x.weight")}, layer_order=("x",), rank=3, alpha=3)
    tiles = iter([np.zeros((1, 1), np.float32)])
    ((_, after),) = merged_tiles(tiles, [Delta(adapter=adapter, logical="x", row=0, column=0)], place="x")
    assert after.item() == delta


def test_only_the_adapter_s_keys_change_and_all_else_is_copied_bit_for_bit(tmp_path: Path) -> None:
    """Catalogue: fuse-does-nothing, qkv-bias-dropped-on-save, bf16-loaded-through-half, checkpoint-dtype-kept-silently."""
    tensors: Tensors = {key: tensor.astype(DTYPES["BF16"]) for key, tensor in llama_tensors().items()}
    tensors["model.norm.weight"] = np.array([1e38, 1e-38, -0.0, 65505, 1e-9, 3, np.inf, np.nan, -1, 2], DTYPES["BF16"])
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.arange(3, dtype=np.float32)
    tensors["model.layers.0.mask"] = np.array([[True, False]])
    folder = done(tmp_path, adapter_on(LLAMA, LINEARS), tensors, LLAMA)
    merged = merged_tensors(folder)
    assert merged.keys() == tensors.keys()
    changed = {key for key in tensors if merged[key].dtype != tensors[key].dtype or merged[key].tobytes() != tensors[key].tobytes()}
    assert changed == {Q, DOWN} == set(read_manifest(folder).keys)
    for key in changed:
        assert np.mean(merged[key] != tensors[key].astype(np.float32)) == 1
        assert read_manifest(folder).keys[key].changed == read_manifest(folder).keys[key].values == tensors[key].size


def test_a_small_delta_is_not_swallowed_by_a_narrow_base(tmp_path: Path) -> None:
    """Catalogue: merge-delta-swallowed-low-precision, merge-double-rounding-bf16; judged relative to the delta."""
    tensors = {key: (0.05 * tensor).astype(DTYPES["BF16"]) for key, tensor in llama_tensors().items()}
    adapter = adapter_on(LLAMA, ("layers.1.q_proj",), alpha=1e-5)
    merged = merged_tensors(done(tmp_path, adapter, tensors, LLAMA))
    a, b = adapter.matrices["layers.1.q_proj"]
    delta = adapter.scale("layers.1.q_proj") * (b.astype(np.float64) @ a.astype(np.float64))
    found = merged[Q].astype(np.float64) - tensors[Q].astype(np.float64)
    half_a_unit = 2.0**-24 * 2.0 ** np.ceil(np.log2(np.abs(merged[Q])))
    assert (np.abs(found - delta) <= half_a_unit).all()
    rounded = tensors[Q].astype(np.float32) + delta.astype(np.float32)
    assert np.mean(rounded.astype(DTYPES["BF16"]) == tensors[Q]) > 0.5  # what a merge into bfloat16 would lose


def test_a_delta_that_is_lost_is_told(tmp_path: Path) -> None:
    """B = 0 is the base; so is a delta under half a unit in the last place, and the manifest counts both."""
    adapter = adapter_on(LLAMA, LINEARS)
    nothing = {logical: (a, np.zeros_like(b)) for logical, (a, b) in adapter.matrices.items()}
    folder = done(tmp_path, Adapter(**(vars(adapter) | {"matrices": nothing})), llama_tensors(), LLAMA)
    assert {key.changed for key in read_manifest(folder).keys.values()} == {0}
    merged = merged_tensors(folder)
    assert all(np.array_equal(merged[key], tensor) for key, tensor in llama_tensors().items())


def test_twice_and_from_another_sharding_the_same_bytes(tmp_path: Path) -> None:
    adapter, tensors = adapter_on(LLAMA, LINEARS), llama_tensors()
    bases = [write_base(tmp_path / f"base{shards}", tensors, LLAMA, shards=shards) for shards in (1, 2, 3)]
    bases.append(write_base(tmp_path / "backwards", dict(reversed(tensors.items())), LLAMA, shards=4))
    for limit in (10**9, 3000):
        outputs = []
        for number, base in enumerate([*bases, bases[0]]):
            merge(adapter, base, tmp_path / f"out{limit}_{number}", shard_bytes=limit)
            outputs.append(content(tmp_path / f"out{limit}_{number}"))
        assert all(output == outputs[0] for output in outputs)
        assert ("model.safetensors" in outputs[0]) == (limit == 10**9)
    index = json.loads(outputs[0]["model.safetensors.index.json"])
    assert set(index["weight_map"]) == set(tensors)
    assert list(index["weight_map"].values()) == sorted(index["weight_map"].values())  # filled key by key
    assert len(set(index["weight_map"].values())) > 3
    for key, name in index["weight_map"].items():
        with safe_open(tmp_path / "out3000_0" / name, framework="numpy") as file:
            assert key in file.keys()  # noqa: SIM118  (no dict)


def test_the_manifest_says_what_it_was_made_of(tmp_path: Path) -> None:
    adapter = adapter_on(LLAMA, LINEARS, method="qlora", quant=Quant(base_quant="nf4", double_quant=True), adapter_tag="t", notes=("n",))
    folder = done(tmp_path, adapter, llama_tensors(), LLAMA)
    manifest = read_manifest(folder)
    assert manifest.base_policy == "original_weights"  # catalogue: merge-into-w16-not-dequant-w4: declared
    assert manifest.adapter.quant == adapter.quant
    assert manifest.adapter.sha256 == content_sha256(adapter)
    assert manifest.claims_full_attention_fidelity
    other = done(tmp_path, adapter, llama_tensors(seed=4), LLAMA, "other")
    assert read_manifest(other).base_sha256 != manifest.base_sha256


@pytest.mark.parametrize(
    ("facts", "claims"),
    [({}, True), ({"graph": "qlora_proxy_v1"}, False), ({"graph": None}, False), ({"allow_placeholder_attention_merge": True}, False)],
)
def test_full_attention_fidelity_is_claimed_for_the_full_graph_alone(tmp_path: Path, facts: dict[str, Any], claims: bool) -> None:
    folder = done(tmp_path, adapter_on(LLAMA, LINEARS, **facts), llama_tensors(), LLAMA)
    assert json.loads((folder / MANIFEST).read_text())["claims_full_attention_fidelity"] is claims


def test_config_and_tokenizer_go_with_the_weights(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", llama_tensors(), LLAMA)
    (base / "chat_template.jinja").write_text("{{ x }}")
    (base / "manifest.json").write_text("{}")
    (base / "pytorch_model.bin").write_text("pickle")
    (tmp_path / "blob").write_text("{}")
    (base / "generation_config.json").symlink_to(tmp_path / "blob")
    merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    names = {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "model.safetensors", MANIFEST}
    assert set(content(tmp_path / "out")) == names
    assert not (tmp_path / "out" / "generation_config.json").is_symlink()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == dict(LLAMA) | {"dtype": "float32", "torch_dtype": "float32"}


def test_a_second_merge_of_the_same_adapter_is_refused_and_another_one_s_is_recorded(tmp_path: Path) -> None:
    """Catalogue: merge-not-idempotent."""
    one, two = adapter_on(LLAMA, LINEARS), adapter_on(LLAMA, LINEARS, seed=6)
    first = done(tmp_path, one, llama_tensors(), LLAMA)
    with pytest.raises(ContractError, match="already") as error:
        merge(one, first, tmp_path / "twice")
    assert MANIFEST in refused(error)
    merge(two, first, tmp_path / "both")
    assert [earlier.sha256 for earlier in read_manifest(tmp_path / "both").earlier] == [content_sha256(one)]
    for again in (one, two):
        with pytest.raises(ContractError, match="already"):
            merge(again, tmp_path / "both", tmp_path / "thrice")


def test_an_adapter_s_hash_is_of_all_that_it_adds_and_of_nothing_else() -> None:
    one = adapter_on(LLAMA, LINEARS)
    a, b = one.matrices[LINEARS[0]]
    others = [
        {"alpha": 7.5}, {"rslora": True}, {"alpha_pattern": {LINEARS[1]: 1.0}}, {"matrices": one.matrices | {LINEARS[0]: (-a, -b)}},
        {"places": one.places | {LINEARS[0]: Place(key="x.weight")}},
        {"places": one.places | {LINEARS[0]: Place(key=one.places[LINEARS[0]].key, offset=1)}},
    ]  # fmt: skip
    hashes = [content_sha256(Adapter(**(vars(one) | changed))) for changed in others]
    assert len({content_sha256(one), *hashes}) == len(others) + 1
    same = {"graph": None, "vocab": None, "layer_order": LINEARS[::-1], "notes": ("x",), "rank": 9}
    assert content_sha256(Adapter(**(vars(one) | same))) == content_sha256(one)


def test_the_base_s_files_are_untouched(tmp_path: Path) -> None:
    """Catalogue: merged-adapter-deleted-first, dora-unmerge-wrong-axis: the base is never written, so that there is nothing to undo."""
    base = write_base(tmp_path / "base", llama_tensors(), LLAMA, shards=2)
    before = content(base)
    merge(adapter_on(LLAMA, LINEARS), base, tmp_path / "out")
    assert content(base) == before


def test_no_tensor_is_ever_whole_in_memory(tmp_path: Path) -> None:
    """The bound is that of two tensors; tiles and chunks stay far below it."""
    config = dict(LLAMA) | {"hidden_size": 1000, "intermediate_size": 1500, "num_attention_heads": 10, "head_dim": 100}
    shape = {"gate_proj": (1500, 1000), "down_proj": (1000, 1500)}
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.{layer}.mlp.{name}.weight": rng.standard_normal(shape[name]).astype(np.float32)
        for layer in range(2)
        for name in shape
    }
    tensors["model.embed_tokens.weight"] = rng.standard_normal((3000, 1000)).astype(np.float32)
    adapter = adapter_on(config, ("layers.0.gate_proj", "layers.1.down_proj"))
    base = write_base(tmp_path / "base", tensors, config)
    tracemalloc.start()
    merge(adapter, base, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1500 * 1000 * 4
    assert sum(tensor.nbytes for tensor in tensors.values()) > 3 * peak
