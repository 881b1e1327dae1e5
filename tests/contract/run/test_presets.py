"""Presets: each is a whole contract once it has a model and data, and keeps what its name promises."""

from __future__ import annotations

import pytest

from contract.run.presets import FOLDER, NAMES, preset_layer, preset_text
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract

REQUIRED = ("model.hf_repo=m", "data.train_file=t.jsonl")
DEFAULT = FineTuneContract.model_validate({"model": {"hf_repo": "m"}, "data": {"train_file": "t.jsonl"}})


def completed(name: str) -> FineTuneContract:
    return read_contract(None, preset=name, overrides=REQUIRED)


def test_every_file_is_a_preset_and_the_other_way_round() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_commented_and_names_no_model_and_no_data(name: str) -> None:
    assert preset_text(name).startswith("# ")
    assert not {"model", "data"} & preset_layer(name).values.keys()
    assert completed(name) != DEFAULT


def test_smoke_is_small() -> None:
    smoke = completed("smoke")
    assert smoke.exec.device == "CPU"
    assert smoke.exec.seq_len * smoke.exec.batch_size * smoke.exec.grad_accum <= 128
    assert (smoke.lane, smoke.adapter.method, smoke.quant.base) == ("production", "qlora", "nf4")


def test_cpu_sees_as_many_rows_a_step_as_the_default() -> None:
    cpu = completed("cpu")
    assert (cpu.exec.device, cpu.exec.compute_dtype) == ("CPU", "float32")
    assert cpu.exec.batch_size * cpu.exec.grad_accum == DEFAULT.exec.batch_size * DEFAULT.exec.grad_accum
    assert cpu.exec.batch_size < DEFAULT.exec.batch_size


@pytest.mark.parametrize(("name", "optimizer"), [("gpu_16g", "paged_adamw_8bit"), ("gpu_80g", "adamw")])
def test_gpus_pack_in_bfloat16(name: str, optimizer: str) -> None:
    gpu = completed(name)
    assert (gpu.exec.device, gpu.exec.compute_dtype, gpu.exec.packing, gpu.exec.optimizer) == ("CUDA", "bfloat16", True, optimizer)


def test_the_larger_gpu_sees_longer_rows() -> None:
    assert completed("gpu_80g").exec.seq_len > completed("gpu_16g").exec.seq_len > DEFAULT.exec.seq_len


def test_research_is_the_seed_s_portable_run() -> None:
    """LoRA on q, k and v of a base in float32; all else at its default."""
    research = completed("research")
    assert (research.lane, research.stack) == ("research", None)
    assert (research.adapter.method, research.quant.base) == ("lora", "none")
    assert research.adapter.target_modules == ("q_proj", "k_proj", "v_proj")
    assert research.exec == DEFAULT.exec
    assert (research.adapter.rank, research.adapter.alpha) == (DEFAULT.adapter.rank, DEFAULT.adapter.alpha)


def test_mobile_edge_keeps_to_its_gates() -> None:
    """The limits of that target: no full proxy stack, seq_len <= 512, rank <= 32, batch 1, device CPU."""
    edge = completed("mobile_edge")
    assert edge.artifact.deployment_target == "mobile_edge"
    assert not edge.exec.require_full_proxy_stack
    assert edge.exec.seq_len <= 512
    assert edge.adapter.rank <= 32
    assert (edge.exec.batch_size, edge.exec.device) == (1, "CPU")
