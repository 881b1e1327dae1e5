"""Where a merge puts what it adds: transposed, fused and tied weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.merge_manifest import read_manifest
from contract.errors import ContractError
from tests.contract.artifacts.adapter_cases import GPT2, LLAMA, adapter_on, gpt2_tensors, llama_tensors, merged_tensors, refused
from tests.contract.artifacts.exact_merge import bits, by_hand, done


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_s_weights_are_transposed_the_square_one_too(tmp_path: Path, prefix: str) -> None:
    """No shape tells a transposed square weight apart; the adapter's keys may lack the prefix that the checkpoint's have."""
    linears = ("layers.0.o_proj", "layers.1.up_proj", "layers.1.down_proj")
    adapter, tensors = adapter_on(GPT2, linears), gpt2_tensors(prefix=prefix)
    merged = merged_tensors(done(tmp_path, adapter, tensors, GPT2))
    for logical, key in zip(linears, ("h.0.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"), strict=True):
        key = f"{prefix}{key}.weight"
        wanted = by_hand(np.ascontiguousarray(tensors[key].T), *adapter.matrices[logical], 7 / 3)
        assert bits(np.ascontiguousarray(merged[key].T)) == bits(wanted)
    square = tensors[f"{prefix}h.0.attn.c_proj.weight"]
    straight = by_hand(square, *adapter.matrices[linears[0]], 7 / 3)
    assert not np.allclose(merged[f"{prefix}h.0.attn.c_proj.weight"], straight)


@pytest.mark.parametrize("parts", [("q_proj",), ("v_proj", "k_proj"), ("q_proj", "k_proj", "v_proj")])
def test_q_k_and_v_go_to_their_thirds_of_gpt2_s_c_attn(tmp_path: Path, parts: tuple[str, ...]) -> None:
    linears = tuple(f"layers.1.{part}" for part in parts)
    adapter, tensors = adapter_on(GPT2, linears, ranks={linears[0]: 2}), gpt2_tensors()
    merged = merged_tensors(done(tmp_path, adapter, tensors, GPT2))
    wanted = tensors["h.1.attn.c_attn.weight"].copy()
    for part, logical in zip(parts, linears, strict=True):
        third = 6 * ("q_proj", "k_proj", "v_proj").index(part)
        own = np.ascontiguousarray(wanted[:, third : third + 6].T)
        wanted[:, third : third + 6] = by_hand(own, *adapter.matrices[logical], adapter.scale(logical)).T
    assert bits(merged["h.1.attn.c_attn.weight"]) == bits(wanted)
    assert all(np.array_equal(merged[key], tensors[key]) for key in tensors if key != "h.1.attn.c_attn.weight")


@pytest.mark.parametrize("key", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("copy", [False, True])
def test_a_tied_head_gets_a_weight_of_its_own(tmp_path: Path, key: str, copy: bool) -> None:
    """Added to the embedding itself, its delta would change what goes into the model, too."""
    config = dict(LLAMA) | {"tie_word_embeddings": True}
    tensors = llama_tensors(tie_word_embeddings=True)
    embedding = tensors["model.embed_tokens.weight"]
    if copy:
        tensors["lm_head.weight"] = embedding.copy()
    adapter = adapter_on(LLAMA, ("lm_head",), embed_key="model.embed_tokens.weight")
    adapter = Adapter(**(vars(adapter) | {"places": {"lm_head": Place(key=key)}}))
    folder = done(tmp_path, adapter, tensors, config)
    merged = merged_tensors(folder)
    assert np.array_equal(merged["model.embed_tokens.weight"], embedding)
    assert bits(merged["lm_head.weight"]) == bits(by_hand(embedding, *adapter.matrices["lm_head"], 7 / 3))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert read_manifest(folder).untied_head
    assert set(merged) == {*tensors, "lm_head.weight"}


def test_an_untied_head_is_a_linear_like_any_other(tmp_path: Path) -> None:
    adapter = adapter_on(LLAMA, ("lm_head",))
    folder = done(tmp_path, adapter, llama_tensors(), LLAMA)
    assert bits(merged_tensors(folder)["lm_head.weight"]) == bits(
        by_hand(llama_tensors()["lm_head.weight"], *adapter.matrices["lm_head"], 7 / 3)
    )
    assert not read_manifest(folder).untied_head


def test_a_tied_head_that_is_no_copy_is_refused(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"lm_head.weight": llama_tensors(seed=9)["lm_head.weight"]}
    with pytest.raises(ContractError, match="tie_word_embeddings"):
        done(tmp_path, adapter_on(LLAMA, ("lm_head",)), tensors, dict(LLAMA) | {"tie_word_embeddings": True})
    assert not (tmp_path / "out").exists()


def in_parts(parts: dict[str, tuple[int, int]], *, width: int = 10, key: str = "model.layers.1.mlp.up_proj.weight") -> Adapter:
    """LoRA on parts of one weight [out, in]: name -> first output feature and how many; all of them `width` wide."""
    rng = np.random.default_rng(6)
    matrices = {
        name: (rng.standard_normal((2, width)).astype(np.float32), rng.standard_normal((size, 2)).astype(np.float32))
        for name, (_, size) in parts.items()
    }
    places = {name: Place(key=key, offset=offset) for name, (offset, _) in parts.items()}
    return Adapter(matrices=matrices, places=places, layer_order=tuple(parts), rank=2, alpha=3.0)


def test_parts_of_a_weight_that_is_not_transposed_are_its_rows(tmp_path: Path) -> None:
    """Side by side, in any order; rows that belong to no part stay as they are."""
    parts, key = {"second": (7, 8), "first": (2, 5)}, "model.layers.1.mlp.up_proj.weight"
    adapter, tensors = in_parts(parts), llama_tensors()
    merged = merged_tensors(done(tmp_path, adapter, tensors, LLAMA))
    wanted = tensors[key].copy()
    for name, (offset, size) in parts.items():
        wanted[offset : offset + size] = by_hand(tensors[key][offset : offset + size], *adapter.matrices[name], 1.5)
    assert bits(merged[key]) == bits(wanted)


@pytest.mark.parametrize(
    ("adapter", "config"),
    [
        (in_parts({"one": (0, 5)}, width=9), LLAMA),
        (in_parts({"one": (0, 6)}, width=5, key="h.0.attn.c_attn.weight"), GPT2),
        (in_parts({"one": (16, 5)}), LLAMA),
        (in_parts({"one": (13, 6)}, width=6, key="h.0.attn.c_attn.weight"), GPT2),
    ],
    ids=["narrower", "narrower-transposed", "beyond-the-end", "beyond-the-end-transposed"],
)
def test_a_part_takes_the_weight_s_whole_input_and_lies_within_it(tmp_path: Path, adapter: Adapter, config: dict[str, Any]) -> None:
    tensors = llama_tensors() if config is LLAMA else gpt2_tensors()
    with pytest.raises(ContractError, match="shape") as error:
        done(tmp_path, adapter, tensors, config)
    refused(error)
    assert not (tmp_path / "out").exists()


def test_a_key_of_gpt2_with_its_prefix_is_transposed_too(tmp_path: Path) -> None:
    """PEFT's adapters have the prefix."""
    plain, tensors = adapter_on(GPT2, ("layers.0.o_proj",)), gpt2_tensors()
    prefixed = Adapter(**(vars(plain) | {"places": {"layers.0.o_proj": Place(key="transformer.h.0.attn.c_proj.weight")}}))
    merged = [merged_tensors(done(tmp_path, adapter, tensors, GPT2, name)) for name, adapter in (("a", plain), ("b", prefixed))]
    assert all(merged[0][key].tobytes() == merged[1][key].tobytes() for key in tensors)


def test_only_gpt2_s_keys_go_with_and_without_the_prefix(tmp_path: Path) -> None:
    plain = adapter_on(LLAMA, ("layers.0.o_proj",))
    prefixed = Adapter(**(vars(plain) | {"places": {"layers.0.o_proj": Place(key="transformer.model.layers.0.self_attn.o_proj.weight")}}))
    with pytest.raises(ContractError, match="a key of"):
        done(tmp_path, prefixed, llama_tensors(), LLAMA)


def test_a_zero_that_is_merged_has_a_plus(tmp_path: Path) -> None:
    """The sum begins with +0, so that -0 in the base becomes +0 even where B is 0: every program that merges must give the same bytes."""
    adapter, tensors = adapter_on(LLAMA, ("layers.0.o_proj",)), llama_tensors()
    a, b = adapter.matrices["layers.0.o_proj"]
    adapter = Adapter(**(vars(adapter) | {"matrices": {"layers.0.o_proj": (-np.abs(a), np.zeros_like(b))}}))
    key = "model.layers.0.self_attn.o_proj.weight"
    tensors[key] = np.full_like(tensors[key], -0.0)
    assert merged_tensors(done(tmp_path, adapter, tensors, LLAMA))[key].tobytes() == bytes(tensors[key].nbytes)
