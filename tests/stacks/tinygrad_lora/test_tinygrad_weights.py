"""The tinygrad stack's base weights: from a request's arrays and from a checkpoint's files, one at a time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from contract.errors import ContractError
from contract.model import checkpoint as checkpoints
from contract.model.checkpoint import Checkpoint
from contract.model.layout import GPT2Layout
from contract.model.layout import read as layout_of
from contract.model.weights import weights as layout_weights
from contract.worker import graph
from contract.worker.plan import GraphPlan, Lora, Nf4
from stacks.tinygrad_lora import nf4, weights
from stacks.tinygrad_lora.host import to_device, to_host
from stacks.tinygrad_lora.ops import TinygradLora
from stacks.tinygrad_lora.replay import Replays
from stacks.tinygrad_lora.weights import Weights

CONFIG = {
    "model_type": "gpt2", "vocab_size": 11, "n_embd": 6, "n_layer": 1, "n_head": 2, "n_positions": 5, "n_inner": 8,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _cpu() -> None:
    TinygradLora("CPU")


def write(folder: Path, *, changed: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """A GPT-2 of one layer as transformers writes it; what lies there."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    generator = np.random.default_rng(3)
    layout = layout_of(CONFIG)
    stored = {weight.key: generator.standard_normal(weight.stored).astype(np.float32) for weight in layout_weights(layout)}
    save_file(stored | (changed or {}), folder / "model.safetensors")
    return stored


def plan_of(path: Path, **changes: object) -> GraphPlan:
    layout = checkpoints.open_checkpoint(path, name="tiny").layout
    assert isinstance(layout, GPT2Layout)
    return GraphPlan.model_validate({"layout": layout, "dtype": "float32", "lora": Lora(rank=2, alpha=4.0), **changes})


def test_a_gpt2_of_files(tmp_path: Path) -> None:
    """q, k and v come split, each linear turned to [out, in]; c_proj is square, so that no shape would tell."""
    stored = write(tmp_path / "tiny")
    plan = plan_of(tmp_path / "tiny")
    source = weights.of_checkpoint(checkpoints.open_checkpoint(tmp_path / "tiny", name="tiny"))
    held = {name: to_host(tensor) for name, tensor in Weights(plan, source, "CPU").section("layers.0").items()}
    fused, bias = stored["h.0.attn.c_attn.weight"], stored["h.0.attn.c_attn.bias"]
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        np.testing.assert_array_equal(held[name], fused[:, 6 * i : 6 * i + 6].T)
        np.testing.assert_array_equal(held[f"{name}.bias"], bias[6 * i : 6 * i + 6])
    np.testing.assert_array_equal(held["o_proj"], stored["h.0.attn.c_proj.weight"].T)
    np.testing.assert_array_equal(held["mlp_norm.bias"], stored["h.0.ln_2.bias"])
    head = Weights(plan, source, "CPU").section("head")
    np.testing.assert_array_equal(to_host(head["lm_head"]), stored["wte.weight"])
    assert set(head) == {"final_norm", "final_norm.bias", "lm_head"}


def test_a_checkpoint_gives_what_a_request_gives(tmp_path: Path) -> None:
    write(tmp_path / "tiny")
    checkpoint = checkpoints.open_checkpoint(tmp_path / "tiny", name="tiny")
    plan = plan_of(tmp_path / "tiny", dtype="bfloat16", base=Nf4(block_size=32, double_quant=False))
    arrays = {name: checkpoints.load(checkpoint, name) for name in graph.weights(plan)}
    for section in ("layers.0", "head"):
        files = Weights(plan, weights.of_checkpoint(checkpoint), "CPU").section(section)
        request = Weights(plan, weights.of_arrays(arrays), "CPU").section(section)
        assert set(files) == set(request)
        for name, tensor in files.items():
            assert to_host(tensor).dtype.name == "bfloat16"
            np.testing.assert_array_equal(to_host(tensor), to_host(request[name]))


@pytest.mark.parametrize("largest", [0, 2**20])
def test_weights_of_one_shape_are_quantised_each_by_itself(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two of a shape run the steps, the others replay what was captured; over a size none does. The bytes are the same."""
    monkeypatch.setattr(weights, "_replays", cache(lambda device: Replays(device, largest=largest)))
    generator = np.random.default_rng(5)
    layout = layout_of(CONFIG | {"n_layer": 4})
    plan = GraphPlan(layout=layout, dtype="float64", lora=Lora(rank=2, alpha=4.0), base=Nf4(block_size=16, double_quant=True))
    arrays = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, (shape, _) in (graph.weights(plan) | graph.adapter(plan)).items()
    }
    read = Weights(plan, weights.of_arrays(arrays), "CPU")
    for layer in range(4):
        held, name = read.section(f"layers.{layer}"), f"layers.{layer}.up_proj"
        packed_P, absmax_B = nf4.encode(to_device(arrays[name], "CPU"), block_size=16, double_quant=True)
        out_features, in_features = arrays[name].shape
        expected_OI = nf4.dequantize(packed_P, absmax_B, block_size=16, out_features=out_features, in_features=in_features)
        np.testing.assert_array_equal(to_host(held["up_proj"]), to_host(expected_OI).astype(np.float64))


def test_rows_are_mapped_and_weights_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the file as it is asked for stays there; what is turned or split is read, once, and not before its section is."""
    stored = write(tmp_path / "tiny")
    checkpoint, load = checkpoints.open_checkpoint(tmp_path / "tiny", name="tiny"), checkpoints.load
    read: list[str] = []

    def recorded(of: Checkpoint, name: str) -> np.ndarray:
        read.append(name)
        return load(of, name)

    monkeypatch.setattr(checkpoints, "load", recorded)
    source = weights.of_checkpoint(checkpoint)
    embeddings = Weights(plan_of(tmp_path / "tiny"), source, "CPU").embeddings()
    assert not read
    for name, key in (("embedding", "wte.weight"), ("position_embedding", "wpe.weight")):
        assert isinstance(embeddings[name], np.memmap)
        np.testing.assert_array_equal(embeddings[name], stored[key])
    Weights(plan_of(tmp_path / "tiny"), source, "CPU").section("layers.0")
    turned_or_split = {name for name in graph.weights(plan_of(tmp_path / "tiny", sections=("layers.0",))) if "_proj" in name}
    assert set(read) == turned_or_split - {"layers.0.o_proj.bias", "layers.0.up_proj.bias", "layers.0.down_proj.bias"}
    assert len(read) == len(set(read))


def test_rows_of_a_request_do_not_keep_the_request() -> None:
    array = np.ones((3, 2), dtype=np.float32)
    assert not np.shares_memory(weights.of_arrays({"embedding": array}).rows("embedding"), array)


def test_a_mismatch_names_the_key_and_both_shapes(tmp_path: Path) -> None:
    write(tmp_path / "tiny", changed={"h.0.mlp.c_fc.weight": np.zeros((8, 6), dtype=np.float32)})
    with pytest.raises(ContractError, match=r"h\.0\.mlp\.c_fc\.weight.*\[8, 6\].*\[6, 8\]"):
        checkpoints.open_checkpoint(tmp_path / "tiny", name="tiny")


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tiny")
    checkpoint = checkpoints.open_checkpoint(tmp_path / "tiny", name="tiny")
    read = Weights(plan_of(tmp_path / "tiny"), weights.of_checkpoint(checkpoint), "CPU")
    write(tmp_path / "tiny")
    with pytest.raises(ContractError, match="was changed"):
        read.section("layers.0")
