"""The adapters that a run leaves: what the contract says stands in the files, under the right names, the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.artifacts import peft, v2, v3
from contract.artifacts.adapter import Adapter, Quant
from contract.artifacts.by_path import by_path
from contract.errors import ContractError
from contract.model import layout
from contract.model.checkpoint import open_checkpoint
from contract.model.layout import Layout
from contract.run.spec import FineTuneContract
from contract.training.outputs import adapter_of, write_adapters
from tests.contract.artifacts.adapter_cases import GPT2, LLAMA, content, gpt2_tensors, llama_tensors, write_base

EVERY: Mapping[str, Any] = {
    "model": {"hf_repo": "someone/model"},
    "adapter": {
        "method": "qlora", "rank": 3, "alpha": 7.5, "rslora": True, "rank_pattern": {"q_proj": 2, "layers.1.q_proj": 4},
        "alpha_pattern": {"q_proj": 9.0, "layers.1.q_proj": 11.0},
    },
    "quant": {"base": "nf4", "double_quant": False, "block_size": 128},
    "artifact": {"allow_placeholder_attention_merge": True, "deployment_target": "mobile_edge"},
    "exec": {"adapter_tag": "a tag"},
}  # fmt: skip
"""A distinct value in every field that an adapter's files say."""


def contract_of(**changed: Any) -> FineTuneContract:
    value = {name: dict(EVERY[name]) | changed.pop(name, {}) for name in EVERY}
    return FineTuneContract.model_validate(value | {"data": {"train_file": "rows.jsonl"}} | changed)


def state_of(model: Layout, contract: FineTuneContract, linears: tuple[str, ...], seed: int = 6) -> SimpleNamespace:
    """A trainer's state: a matrix's values say which one it is."""
    rng, matrices, spec = np.random.default_rng(seed), {}, contract.adapter
    for path in linears:
        kind = path.rpartition(".")[2]
        out, in_ = (model.vocab_size, model.hidden_size) if kind == "lm_head" else model.widths[kind]
        rank = spec.rank_pattern.get(path, spec.rank_pattern.get(kind, spec.rank))
        matrices |= {f"{path}.lora_a": rng.standard_normal((rank, in_)), f"{path}.lora_b": rng.standard_normal((out, rank))}
    return SimpleNamespace(adapter={name: matrix.astype(np.float32) for name, matrix in matrices.items()})


LINEARS = ("layers.1.q_proj", "layers.0.down_proj", "layers.0.q_proj")


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    return open_checkpoint(write_base(tmp_path / "base", llama_tensors(), LLAMA))


def test_every_field_reaches_the_files(tmp_path: Path, llama: Any) -> None:
    run = SimpleNamespace(contract=contract_of(), checkpoint=llama)
    state = state_of(llama.layout, run.contract, LINEARS)
    assert write_adapters(run, state, tmp_path / "out") == ()
    adapter = v3.read(tmp_path / "out/adapter")
    assert adapter == v2.read(tmp_path / "out/adapter") == adapter_of(run, state)
    assert adapter.layer_order == ("layers.0.q_proj", "layers.0.down_proj", "layers.1.q_proj")
    assert {path: place.key for path, place in adapter.places.items()} == {
        "layers.0.q_proj": "model.layers.0.self_attn.q_proj.weight", "layers.0.down_proj": "model.layers.0.mlp.down_proj.weight",
        "layers.1.q_proj": "model.layers.1.self_attn.q_proj.weight",
    }  # fmt: skip
    assert {path: (adapter.rank_of(path), adapter.alpha_of(path)) for path in adapter.layer_order} == {
        "layers.0.q_proj": (2, 9.0), "layers.0.down_proj": (3, 7.5), "layers.1.q_proj": (4, 11.0),
    }  # fmt: skip
    for path, (a, b) in adapter.matrices.items():
        assert a.tobytes() == state.adapter[f"{path}.lora_a"].tobytes()
        assert b.tobytes() == state.adapter[f"{path}.lora_b"].tobytes()
    assert (adapter.rank, adapter.alpha, adapter.rslora, adapter.method) == (3, 7.5, True, "qlora")
    assert adapter.quant == Quant(base_quant="nf4", double_quant=False, block_size=128)
    assert (adapter.embed_key, adapter.vocab, adapter.d_model) == ("model.embed_tokens.weight", 14, 10)
    assert (adapter.base_model, adapter.graph, adapter.adapter_tag) == ("someone/model", "full_causal", "a tag")
    assert adapter.allow_placeholder_attention_merge
    assert not adapter.claims_full_attention_fidelity
    assert [note.partition(":")[0].split()[-1] for note in adapter.notes] == ["allow_placeholder_attention_merge", "mobile_edge"]


def test_a_plain_run_has_no_notes_and_says_that_its_base_is_plain(llama: Any) -> None:
    plain = contract_of(
        quant={"base": "none"}, adapter={"method": "lora"},
        artifact={"allow_placeholder_attention_merge": False, "deployment_target": "workstation"},
    )  # fmt: skip
    adapter = adapter_of(SimpleNamespace(contract=plain, checkpoint=llama), state_of(llama.layout, plain, LINEARS))
    assert adapter.notes == ()
    assert adapter.quant == Quant(base_quant="none")
    assert adapter.claims_full_attention_fidelity


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (2, {"candle_qlora_adapter.safetensors", "candle_qlora_adapter_meta.json"}),
        (3, {"candle_qlora_adapter.safetensors", "candle_qlora_adapter_meta.json", "populi_adapter_manifest_v3.json"}),
    ],
)
def test_the_schema_version_that_the_contract_asks_for(tmp_path: Path, llama: Any, version: int, files: set[str]) -> None:
    run = SimpleNamespace(contract=contract_of(artifact={"adapter_schema_version": version}), checkpoint=llama)
    write_adapters(run, state_of(llama.layout, run.contract, LINEARS), tmp_path / "out")
    assert set(content(tmp_path / "out/adapter")) == files
    assert set(content(tmp_path / "out/peft")) == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_same_run_gives_the_same_bytes_in_place_of_what_was_there(tmp_path: Path, llama: Any) -> None:
    run = SimpleNamespace(contract=contract_of(), checkpoint=llama)
    state, other = (state_of(llama.layout, run.contract, LINEARS, seed) for seed in (6, 7))
    write_adapters(run, state, tmp_path / "one")
    write_adapters(run, other, tmp_path / "two")
    assert content(tmp_path / "one") != content(tmp_path / "two")
    reordered = SimpleNamespace(adapter=dict(reversed(state.adapter.items())))
    write_adapters(run, reordered, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_is_no_adapter_is_not_replaced(tmp_path: Path, llama: Any) -> None:
    run = SimpleNamespace(contract=contract_of(), checkpoint=llama)
    (tmp_path / "out/adapter").mkdir(parents=True)
    (tmp_path / "out/adapter/mine.txt").write_text("mine")
    with pytest.raises(ContractError, match="out/adapter: got something else"):
        write_adapters(run, state_of(llama.layout, run.contract, LINEARS), tmp_path / "out")
    assert content(tmp_path / "out") == {"adapter/mine.txt": b"mine"}


def gpt2_run(tmp_path: Path, prefix: str = "", **adapter: Any) -> SimpleNamespace:
    base = open_checkpoint(write_base(tmp_path / "gpt2", gpt2_tensors(prefix=prefix), GPT2))
    return SimpleNamespace(contract=contract_of(adapter={"rank_pattern": {}, "alpha_pattern": {}} | adapter), checkpoint=base)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_s_parts_have_their_offsets_and_become_one_in_peft(tmp_path: Path, prefix: str) -> None:
    run, linears = gpt2_run(tmp_path, prefix, rank=2, alpha=8.0), tuple(f"layers.0.{name}_proj" for name in "vqko")
    state = state_of(run.checkpoint.layout, run.contract, linears)
    assert write_adapters(run, state, tmp_path / "out") == ()
    adapter = v3.read(tmp_path / "out/adapter")
    assert adapter.embed_key == f"{prefix}wte.weight"
    assert {path: (place.key, place.offset) for path, place in adapter.places.items()} == {
        "layers.0.q_proj": ("h.0.attn.c_attn.weight", 0), "layers.0.k_proj": ("h.0.attn.c_attn.weight", 6),
        "layers.0.v_proj": ("h.0.attn.c_attn.weight", 12), "layers.0.o_proj": ("h.0.attn.c_proj.weight", None),
    }  # fmt: skip
    theirs, _ = peft.read(tmp_path / "out/peft")
    assert {name: theirs.rank_of(name) for name in theirs.matrices} == {"layers.0.c_attn": 6, "layers.0.o_proj": 2}
    apart = by_path(theirs, run.checkpoint.layout)
    for path in linears:
        a, b = (state.adapter[f"{path}.lora_{half}"].astype(np.float64) for half in "ab")
        wide_a, wide_b = (matrix.astype(np.float64) for matrix in apart.matrices[path])
        assert np.array_equal(wide_b @ wide_a, b @ a)  # zeros beside the part's own ranks
        assert apart.scale(path) == adapter.scale(path)


def test_parts_that_peft_can_t_hold_leave_our_own_format(tmp_path: Path) -> None:
    run = gpt2_run(tmp_path, alpha_pattern={"v_proj": 5.0})
    state = state_of(run.checkpoint.layout, run.contract, ("layers.0.q_proj", "layers.0.v_proj"))
    (note,) = write_adapters(run, state, tmp_path / "out")
    assert note.startswith("peft/ was not written: base_key_map: layers.0.q_proj, layers.0.v_proj: got scales")
    assert v3.read(tmp_path / "out/adapter") == adapter_of(run, state)
    assert not (tmp_path / "out/peft").exists()


def test_the_proxy_graph_s_names(tmp_path: Path) -> None:
    """Twelve layers: mid10 follows mid9. A layer without LoRA leaves no gap in the numbers."""
    model = layout.read(dict(LLAMA) | {"num_hidden_layers": 13})
    checkpoint = SimpleNamespace(layout=model, placed={"embedding": SimpleNamespace(key="model.embed_tokens.weight")})
    contract = contract_of(
        graph="qlora_proxy_v1", adapter={"targets": "lm_head_proxy", "rank_pattern": {}, "alpha_pattern": {"layers.12.o_proj": 2.5}}
    )
    run: Any = SimpleNamespace(contract=contract, checkpoint=checkpoint)
    layers = [layer for layer in range(13) if layer != 4]
    state = state_of(model, contract, (*(f"layers.{layer}.o_proj" for layer in layers), "lm_head"))
    write_adapters(run, state, tmp_path / "out")
    adapter = v3.read(tmp_path / "out/adapter")
    assert adapter.layer_order == (*(f"mid{number}" for number in range(12)), "lm_head")
    keys = {name: place.key for name, place in adapter.places.items()}
    assert keys == {f"mid{number}": f"model.layers.{layer}.self_attn.o_proj.weight" for number, layer in enumerate(layers)} | {
        "lm_head": "model.embed_tokens.weight"
    }
    assert adapter.alpha_pattern == {"mid11": 2.5}
    assert adapter.graph == "qlora_proxy_v1"
    assert not adapter.claims_full_attention_fidelity
    assert "proxy graph" in adapter.notes[0]
    own = adapter_of(run, state)
    assert isinstance(own, Adapter)
    assert set(own.matrices) == {name.rpartition(".")[0] for name in state.adapter}
    back = by_path(adapter, model)
    assert all(np.array_equal(back.matrices[path][0], state.adapter[f"{path}.lora_a"]) for path in own.matrices)
    assert {path: back.alpha_of(path) for path in own.matrices} == {path: own.alpha_of(path) for path in own.matrices}
