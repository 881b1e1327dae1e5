"""A model and an adapter from disk, of every format: the same graph, and so the same text; what can't be held is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.artifacts import peft, training_checkpoint, v2, v3
from contract.artifacts.adapter import Quant
from contract.artifacts.by_path import by_path
from contract.artifacts.merge import merge
from contract.errors import ContractError
from contract.model.checkpoint import load, open_checkpoint
from contract.worker.generation import Answer, Generation
from stacks.torch_qlora.load import open_model, respond
from stacks.torch_qlora.merge import merge_graph
from stacks.torch_qlora.ops import TorchQlora
from tests import proxy_formula
from tests.contract.artifacts.adapter_cases import (
    DTYPES,
    GPT2,
    LLAMA,
    adapter_on,
    checkpoint_of,
    gpt2_tensors,
    llama_tensors,
    merged_tensors,
    write_base,
)
from tests.contract.artifacts.filed_adapters import adapter_of, base_of
from tests.stacks.torch_qlora import tiny_proxy
from tests.stacks.torch_qlora.tiny_generation import graph_of, ids_of, uncached

CPU = torch.device("cpu")
PROMPTS = [[3, 1, 11], [7]]


def ids(model: Path, adapter: Path | None = None, **more: Any) -> list[tuple[int, ...]]:
    values = {"model": str(model), "adapter": None if adapter is None else str(adapter), "prompts": PROMPTS, "max_new_tokens": 12}
    reply = respond(values | {"dtype": "float64", "sampling": {"temperature": 1.0}} | more, CPU)
    return [one.ids for one in Answer.model_validate(reply.values).sequences]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_each_format_gives_the_same_text(tmp_path: Path, model: str) -> None:
    """And so does the merged model, whose weights were rounded to float32."""
    base, adapter = base_of(tmp_path, model), adapter_of(model)
    v2.write(tmp_path / "v2", adapter)
    v3.write(tmp_path / "v3", adapter)
    peft.write(tmp_path / "peft", adapter)
    training_checkpoint.write(tmp_path / "checkpoint", checkpoint_of(adapter))
    merge(adapter, base, tmp_path / "merged")
    alone = ids(base)
    expected = ids(base, tmp_path / "v3")
    assert expected != alone
    for name in ("v2", "peft", "checkpoint"):
        assert ids(base, tmp_path / name) == expected, name
    assert ids(tmp_path / "merged") == expected


def test_the_graph_holds_the_adapter_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path), adapter_of()
    v3.write(tmp_path / "v3", adapter)
    request = Generation(model=str(base), adapter=str(tmp_path / "v3"), prompts=((1,),), max_new_tokens=1)
    graph = open_model(request, CPU).graph
    for layer in (0, 1):
        for name in ("q_proj", "up_proj", "down_proj"):
            module, path = getattr(graph.layers[str(layer)], name), f"layers.{layer}.{name}"
            a, b = (module.lora_A["default"].weight, module.lora_B["default"].weight)
            if path in adapter.matrices:
                assert a.detach().numpy().tobytes() == adapter.matrices[path][0].tobytes()
                assert b.detach().numpy().tobytes() == adapter.matrices[path][1].tobytes()
                assert module.scaling["default"] == adapter.scale(path)
            else:
                assert not b.any()


QUANT = Quant(base_quant="nf4", double_quant=False, block_size=32)
BASES: dict[str, tuple[Quant | None, str | None, tuple[int, bool] | None, str]] = {
    "as it was trained": (QUANT, None, (32, False), ""),
    "as it was trained, plain": (Quant(base_quant="none"), None, None, ""),
    "the usual where the file does not say": (
        Quant(base_quant="nf4"),
        None,
        (64, True),
        "NF4 base was made: block_size 64, double_quant true",
    ),
    "not known": (None, None, None, "does not say how its base was held"),
    "not known, and asked for": (None, "nf4", (64, True), "NF4 base was made: block_size 64, double_quant true are taken"),
    "asked for otherwise": (QUANT, "none", None, "was trained on base nf4: on base none it is another model"),
    "asked for otherwise, nf4": (Quant(base_quant="none"), "nf4", (64, True), "was trained on base none: on base nf4"),
}


@pytest.mark.parametrize("name", BASES)
def test_the_base_is_held_as_it_was_in_training_or_as_it_is_asked_for(tmp_path: Path, name: str) -> None:
    quant, asked, wanted, note = BASES[name]
    v3.write(tmp_path / "v3", adapter_of(quant=quant))
    request = Generation(model=str(base_of(tmp_path)), adapter=str(tmp_path / "v3"), base=asked, prompts=((1,),), max_new_tokens=1)
    opened = open_model(request, CPU)
    base = opened.graph.plan.base
    assert (None if base is None else (base.block_size, base.double_quant)) == wanted
    assert bool(opened.notes) == bool(note)
    assert note in "".join(opened.notes)


def test_an_nf4_base_writes_another_text(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    assert ids(base, base="nf4") != ids(base)
    assert ids(base, base="nf4") == ids(base, base="nf4")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"graph": "qlora_proxy_v1"}, "got an adapter of the proxy graph qlora_proxy_v1; allowed: one that was trained on full_causal"),
        ({"vocab": 15}, "adapter: vocab: got 15; allowed: 14"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    v3.write(tmp_path / "v3", replace(adapter_of(), **changed))
    with pytest.raises(ContractError, match=message):
        ids(base_of(tmp_path), tmp_path / "v3")


def test_lora_on_the_head_is_refused_and_its_merge_is_not(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path), adapter_on(LLAMA, ("lm_head",), embed_key="model.embed_tokens.weight")
    v3.write(tmp_path / "v3", adapter)
    with pytest.raises(ContractError, match="got LoRA on lm_head; allowed: LoRA on linears of blocks; merge it with finetune merge-qlora"):
        ids(base, tmp_path / "v3")
    merge(adapter, base, tmp_path / "merged")
    assert ids(tmp_path / "merged") != ids(base)


def test_values_that_are_no_request_are_refused() -> None:
    for values in ({}, {"model": "x", "prompts": [[]], "max_new_tokens": 1}, {"model": "x", "prompts": [[1]], "max_new_tokens": 0}):
        with pytest.raises(ValueError, match="validation error"):
            respond(values, CPU)


# The requests merge and save


def opened(model: Path, adapter: Path | None, **more: Any) -> TorchQlora:
    """A stack whose open graph is of that model."""
    stack = TorchQlora("CPU")
    values = {"model": str(model), "adapter": None if adapter is None else str(adapter), "prompts": ((1,),), "max_new_tokens": 1}
    graph = open_model(Generation.model_validate(values | more), CPU).graph
    stack._session._graph, stack._session._name = graph, "open"
    return stack


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_merge_in_memory_has_the_bits_of_a_merge_of_files(tmp_path: Path, model: str, dtype: str) -> None:
    """Onto the base that the graph holds, widened; GPT-2's weights lie transposed in the file, q, k and v in one."""
    tensors, config = (gpt2_tensors(), GPT2) if model == "gpt2" else (llama_tensors(), LLAMA)
    base = write_base(tmp_path / "base", {key: tensor.astype(DTYPES[dtype]) for key, tensor in tensors.items()}, config)
    adapter = adapter_of(model, rslora=True)
    v3.write(tmp_path / "v3", adapter)
    merge(adapter, base, tmp_path / "merged")
    filed = open_checkpoint(tmp_path / "merged")
    for precision in ("float32", "float64"):
        stack = opened(base, tmp_path / "v3", dtype=precision)
        tensors = stack.merge("open").tensors
        assert set(adapter.matrices) <= set(tensors)
        for path, merged in tensors.items():
            assert merged.tobytes() == np.ascontiguousarray(load(filed, path)).tobytes(), path


def test_an_nf4_base_is_merged_onto_its_dequantised_values(tmp_path: Path) -> None:
    """What merge-qlora does not do: written as a checkpoint of their own, these values give the same bits."""
    base, adapter = base_of(tmp_path), adapter_of()
    v3.write(tmp_path / "v3", adapter)
    held = opened(base, tmp_path / "v3", base="nf4")
    graph = held._session._graph
    assert graph is not None
    values = {path: graph.get_submodule(path).base_layer.weight.detach().numpy().copy() for path in adapter.matrices}
    keys = {adapter.places[path].key: value for path, value in values.items()}
    merge(adapter, write_base(tmp_path / "dequantised", llama_tensors() | keys, LLAMA), tmp_path / "merged")
    filed = merged_tensors(tmp_path / "merged")
    tensors = held.merge("open", linears=list(values)).tensors
    assert list(tensors) == list(values)
    for path, merged in tensors.items():
        assert merged.tobytes() == filed[adapter.places[path].key].tobytes()
        assert not np.array_equal(values[path], llama_tensors()[adapter.places[path].key])


def test_a_merged_graph_is_the_merged_model_and_has_no_adapter_left(tmp_path: Path) -> None:
    base, batch = base_of(tmp_path), {"ids": np.array([[3, 1, 11, 7]])}
    v3.write(tmp_path / "v3", adapter_of())
    merge(adapter_of(), base, tmp_path / "merged")
    stack = opened(base, tmp_path / "v3", dtype="float64")
    before = stack.forward("open", ["logits"], batch).tensors["logits"]
    assert stack.merge("open", linears=[]).tensors == {}
    after = stack.forward("open", ["logits", "layers.0.down_proj"], batch).tensors["logits"]
    filed = opened(tmp_path / "merged", None, dtype="float64").forward("open", ["logits"], batch).tensors["logits"]
    assert after.tobytes() == filed.tobytes() != before.tobytes()
    assert stack.state("open").tensors == {}
    with pytest.raises(ValueError, match="the open graph has no LoRA, having been merged or opened without; open one with an adapter"):
        stack.save("open", str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_a_merge_is_refused_for_a_linear_without_lora_and_in_bfloat16(tmp_path: Path) -> None:
    v3.write(tmp_path / "v3", adapter_of())
    stack = opened(base_of(tmp_path), tmp_path / "v3")
    with pytest.raises(ValueError, match=r"merge: 'layers\.0\.o_proj' has no LoRA; allowed: layers\.0\.q_proj"):
        stack.merge("open", linears=["layers.0.o_proj"])
    assert stack.state("open").tensors
    graph = stack._session._graph
    assert graph is not None
    graph.plan = graph.plan.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(Exception, match="merges into graphs in float32 and float64, not in bfloat16"):
        stack.merge("open")


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_saved_adapter_is_the_one_that_was_open(tmp_path: Path, model: str) -> None:
    base, own = base_of(tmp_path, model), adapter_of(model)
    v3.write(tmp_path / "v3", own)
    stack = opened(base, tmp_path / "v3", base="nf4" if model == "llama" else None)
    assert stack.save("open", str(tmp_path / "saved")).values == {"notes": []}
    saved = v3.read(tmp_path / "saved/adapter")
    assert {path for path in saved.matrices if saved.matrices[path][1].any()} == set(own.matrices)
    for path, (a, b) in own.matrices.items():
        assert saved.matrices[path][0].tobytes() == a.tobytes()
        assert saved.matrices[path][1].tobytes() == b.tobytes()
        assert saved.places[path] == own.places[path]
        assert saved.scale(path) == own.scale(path)
    assert saved.quant == (Quant(base_quant="nf4", double_quant=True, block_size=64) if model == "llama" else Quant(base_quant="none"))
    assert ids(base, tmp_path / "saved/peft", base="none") == ids(base, tmp_path / "v3", base="none")
    config = json.loads((tmp_path / "saved/peft/adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (model == "gpt2")


@pytest.mark.parametrize("base", [None, {"block_size": 32}], ids=["plain", "nf4"])
def test_the_proxy_graph_is_merged_and_saved(tmp_path: Path, base: dict[str, Any] | None) -> None:
    """Its middle blocks go by mid0 .. in the files, and its head is the embedding."""
    plan = proxy_formula.plan(base=base)
    stack, tensors = tiny_proxy.opened(plan), proxy_formula.tensors_of(plan)
    batch = proxy_formula.batch(plan)
    assert stack.save(tiny_proxy.GRAPH, str(tmp_path)).values == {"notes": []}
    saved = v3.read(tmp_path / "adapter")
    assert saved.layer_order == ("mid0", "mid1", "mid2", "mid3", "lm_head")
    assert saved.places["lm_head"].key == "model.embed_tokens.weight"
    apart = by_path(saved, plan.layout)
    for path in apart.layer_order:
        assert apart.matrices[path][0].tobytes() == tensors[f"{path}.lora_a"].tobytes()
        assert apart.scale(path) == plan.lora.scaling_of(path)
    merged = stack.merge(tiny_proxy.GRAPH).tensors
    assert set(merged) == set(apart.matrices)
    answer = stack.forward(tiny_proxy.GRAPH, ["scaled", "lm_head", "loss"], batch).tensors
    scaled, head = torch.from_numpy(answer["scaled"]), torch.from_numpy(merged["lm_head"]).double()
    assert torch.equal(torch.from_numpy(answer["lm_head"]), torch.nn.functional.linear(scaled, head))
    graph = stack._session._graph
    assert graph is not None
    for path, weight in merged.items():
        assert torch.equal(graph.get_submodule(path).weight, torch.from_numpy(weight).double())


@pytest.mark.parametrize("paths", [("nf4_linear",), ("fused_lora",), ("nf4_linear", "fused_lora")])
def test_a_graph_on_its_production_paths_is_merged_to_the_same_bits(paths: tuple[str, ...]) -> None:
    plain, fast = (graph_of("qwen2", "float32", base={"block_size": 64}, paths=these) for these in ((), paths))
    wanted, got = merge_graph(plain).tensors, merge_graph(fast).tensors
    assert {path: tensor.tobytes() for path, tensor in got.items()} == {path: tensor.tobytes() for path, tensor in wanted.items()}
    ids_BT = ids_of(7)
    assert torch.equal(uncached(fast, ids_BT), uncached(plain, ids_BT))
