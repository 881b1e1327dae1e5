"""Runs of the proxy graph: from files that hold little more than it needs to the adapter that merges onto them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.numpy import load_file, save_file

from contract.artifacts import v2, v3
from contract.artifacts.adapter import Adapter
from contract.artifacts.manifest import read_manifest
from contract.data.batches import collate
from contract.data.steps import Step
from contract.model import layout
from contract.model import weights as model_weights
from contract.run.spec import FineTuneContract
from contract.training.account import About
from contract.training.inputs import Run, plan_of, prepare
from stacks.torch_qlora.train import respond
from tests.contract.training.killed import Deaf
from tests.contract.training.toy_run import finetune
from tests.proxy_formula import loss_and_gradients
from tests.stacks.torch_qlora.tiny_torch_run import trainer_of

CONFIG: Mapping[str, Any] = {
    "model_type": "gpt2", "vocab_size": 30, "n_embd": 12, "n_layer": 3, "n_head": 2, "n_positions": 64, "n_inner": 20,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
C_PROJ = "h.{}.attn.c_proj.weight"
BETWEEN = 2.0**-38.5
"""Relative: half way, in powers of two, between float32's unit and float64's (as in test_torch_train.py)."""


def weights(seed: int = 4) -> dict[str, np.ndarray]:
    """A GPT-2's embedding and its attention's output projections, [in, out] and not symmetric, with biases that the proxy leaves out."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (30, 12)}
    for layer in range(3):
        shapes |= {C_PROJ.format(layer): (12, 12), f"h.{layer}.attn.c_proj.bias": (12,)}
    return {name: (generator.standard_normal(shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}


def whole_weights() -> dict[str, np.ndarray]:
    """The same, and all that the whole model has beside them."""
    found = {weight.key: np.ones(weight.stored, np.float32) for weight in model_weights.weights(layout.read(CONFIG))}
    return found | weights()


def make(folder: Path, tensors: Mapping[str, np.ndarray] | None = None) -> Path:
    """A model's folder, and rows."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights() if tensors is None else dict(tensors), model / "model.safetensors")
    words = {"[UNK]": 0, "</s>": 1, **{f"w{number}": number + 2 for number in range(28)}}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(model / "tokenizer.json"))
    rows = [
        {"prompt": f"w{number % 7} w{number % 5}", "response": " ".join(f"w{7 + at}" for at in range(3 + number % 4))}
        for number in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def fields(folder: Path, **changed: Any) -> dict[str, Any]:
    """A contract of the proxy graph; dotted fields (exec__seq_len) changed."""
    value: dict[str, Any] = {
        "graph": "qlora_proxy_v1", "objective": "last_k", "model": {"hf_repo": str(folder / "model")},
        "data": {"train_file": str(folder / "rows.jsonl")},
        "adapter": {"targets": "lm_head_proxy", "rank": 3, "alpha": 6.0, "rank_pattern": {"lm_head": 2}},
        "quant": {"block_size": 32},
        "exec": {
            "seq_len": 16, "ce_last_k": 3, "warmup_steps": 1, "batch_size": 3, "grad_accum": 2, "epochs": 2, "learning_rate": 0.05,
        },
    }  # fmt: skip
    for name, new in changed.items():
        section, _, field = name.rpartition("__")
        (value[section] if section else value)[field] = new
    return value


def run_of(folder: Path, **changed: Any) -> Run:
    return prepare(FineTuneContract.model_validate(fields(folder, **changed)), cache=folder / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("proxy"))


# Which graph it is


@pytest.mark.parametrize(
    ("changed", "dropped", "blocks"),
    [
        ({}, (), 3), ({"exec__proxy_max_layers": 2}, (), 2), ({"exec__proxy_max_layers": 9}, (), 3), ({"exec__proxy_max_layers": 0}, (), 0),
        ({"exec__lm_head_only": True}, (), 0), ({}, (1,), 0), ({"exec__proxy_max_layers": 1}, (2,), 0),
    ],
)  # fmt: skip
def test_how_many_middle_blocks_there_are(tmp_path: Path, changed: dict[str, Any], dropped: tuple[int, ...], blocks: int) -> None:
    """All layers, or so many of the first ones; the head alone where it is asked for, or where a middle key is missing."""
    gone = {C_PROJ.format(layer) for layer in dropped}
    run = run_of(make(tmp_path, {name: value for name, value in weights().items() if name not in gone}), **changed)
    plan = plan_of(run.contract, run.checkpoint)
    assert (plan.graph, plan.blocks) == ("qlora_proxy_v1", blocks)
    paths = [*(f"layers.{layer}.o_proj" for layer in range(blocks)), "lm_head"]
    assert set(run.initial) == {f"{path}.{half}" for path in paths for half in ("lora_a", "lora_b")}
    assert run.initial["lm_head.lora_a"].shape == (2, 12)


# What it computes


def formula(run: Run, tensors: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray], step: Step, *, transposed: bool) -> float:
    """The step's mean loss, of the formula, with the weights as they lie in the file or turned."""
    middle = {f"layers.{layer}.o_proj": tensors[C_PROJ.format(layer)] for layer in range(3)}
    named = {name: matrix.T if transposed else matrix for name, matrix in middle.items()}
    plan = plan_of(run.contract, run.checkpoint)
    batch = step.batches[0]
    tokens = {"ids": batch.ids_BT, "labels": batch.labels_BT}
    found = loss_and_gradients(plan, {"embedding": tensors["wte.weight"], **named, **adapter}, tokens)
    return float(found["loss"])


def test_gpt2s_projection_is_turned_and_its_bias_left_out(folder: Path) -> None:
    run = run_of(folder, quant__base="none", adapter__method="lora")
    trainer = trainer_of(run, dtype="float64")
    examples = [example for example in run.rows.examples([0, 1, 2, 3]) if example is not None]
    batch = collate([[example] for example in examples], 1)
    step = Step(number=0, epoch=0, batches=(batch,), tokens=batch.tokens, skipped=())
    adapter = trainer.state().adapter
    own = trainer.loss_sum(batch) / batch.tokens
    right, wrong = (formula(run, weights(), adapter, step, transposed=turned) for turned in (True, False))
    assert abs(own - right) <= 2 * 2.0**-24 * right  # the state's float32 copy of a float64 adapter is what is left between them
    assert abs(own - wrong) > 1e-3 * right
    assert abs(trainer.step(step, 1e-3).loss - own) <= BETWEEN * own


def test_last_k_learns_the_last_k_tokens(folder: Path) -> None:
    run = run_of(folder)
    for step in run.steps.steps():
        for batch in step.batches:
            assert ((batch.labels_BT != -100).sum(axis=1) == 3).all()
        break


# The request, and the command


def trained(folder: Path, out: Path, channel: Deaf | None = None, resume: str | None = None, **changed: Any) -> dict[str, Any]:
    """The request `train` in this process: the answer's values."""
    about = About(stack="torch_qlora", packages=("torch",), device="CPU").model_dump(mode="json")
    values = {"contract": fields(folder, **changed), "folder": str(out), "about": about, "resume": resume}
    return respond(values, torch.device("cpu"), channel or Deaf()).values


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "adapter").rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    """A whole run's folder."""
    found = folder / "out"
    assert trained(folder, found, adapter__dropout=0.2)["end"] == "done"
    return found


def test_a_run_learns(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "telemetry.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_the_manifest_says_which_graph_it_was(out: Path) -> None:
    manifest = read_manifest(out / "training_manifest.json")
    assert manifest.contract.graph == "qlora_proxy_v1"
    assert any("chunked_loss" in note and "nf4_linear" in note for note in manifest.notes)


@pytest.mark.parametrize("read", [v2.read, v3.read])
def test_the_adapter_s_names_and_keys(out: Path, read: Callable[[Path], Adapter]) -> None:
    adapter = read(out / "adapter")
    assert adapter.layer_order == ("mid0", "mid1", "mid2", "lm_head")
    assert {name: place.key for name, place in adapter.places.items()} == {
        **{f"mid{layer}": C_PROJ.format(layer) for layer in range(3)}, "lm_head": "wte.weight",
    }  # fmt: skip
    assert adapter.matrices["lm_head"][0].shape == (2, 12)
    assert all(b_OR.any() for _, b_OR in adapter.matrices.values())


def test_a_run_that_was_paused_goes_on_as_if_it_had_not_been(folder: Path, out: Path, tmp_path: Path) -> None:
    paused = trained(folder, tmp_path / "out", Deaf(cancel_at=5), adapter__dropout=0.2)
    assert paused["end"] == "paused"
    assert trained(folder, tmp_path / "out", resume=paused["checkpoint"], adapter__dropout=0.2)["end"] == "done"
    assert files(tmp_path / "out") == files(out)


@pytest.mark.nightly
def test_a_run_from_the_command_to_a_merged_model(tmp_path: Path) -> None:
    whole = whole_weights()
    make(tmp_path, whole)
    (tmp_path / "run.json").write_text(json.dumps(fields(tmp_path)))
    assert finetune("train", tmp_path / "run.json", "--out", tmp_path / "out") == 0
    assert finetune("merge-qlora", tmp_path / "out" / "adapter", tmp_path / "model", tmp_path / "merged") == 0
    merged, adapter = load_file(tmp_path / "merged" / "model.safetensors"), v3.read(tmp_path / "out" / "adapter")
    for layer in range(3):
        (a_RI, b_OR), key = adapter.matrices[f"mid{layer}"], C_PROJ.format(layer)
        delta_IO = 2.0 * sum(np.outer(a_I, b_O).astype(np.float64) for a_I, b_O in zip(a_RI, b_OR.T, strict=True))
        assert np.abs(merged[key] - (whole[key] + delta_IO)).max() <= 2.0**-22 * np.abs(whole[key]).max()


def test_a_whole_stack_is_refused_where_a_key_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = weights()
    del tensors[C_PROJ.format(1)]
    make(tmp_path, tensors)
    (tmp_path / "run.json").write_text(json.dumps(fields(tmp_path, exec__require_full_proxy_stack=True)))
    assert finetune("train", tmp_path / "run.json", "--out", tmp_path / "out") == 2
    assert "2 of 3 middle keys; missing: h.1.attn.c_proj.weight" in capfd.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
