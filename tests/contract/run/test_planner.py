"""The planner on files: a plan, or every refusal at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifacts.adapter import Adapter, Place
from contract.artifacts.promotion import Binding, PromotionRecord, base_sha256, record_name, write_promotion
from contract.artifacts.training_checkpoint import Progress, TrainingCheckpoint, write
from contract.run import device_memory, digest
from contract.run.device_memory import DeviceMemory
from contract.run.facts import Refusal
from contract.run.planner import ExecutionPlan, Refused, plan
from contract.run.survey import Options
from contract.worker import files
from contract.worker.discover import version
from tests.contract.model import tiny_checkpoint
from tests.contract.run import small_run

PROXY = {"graph": "qlora_proxy_v1", "adapter__targets": "lm_head_proxy"}
BETA = {"stack": "beta", "adapter__method": "lora", "quant__base": "none"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return small_run.make(tmp_path)


def asked(
    folder: Path, *, device_memory: int | None = 2**30, declared: dict[str, Any] | None = None, **changed: Any
) -> ExecutionPlan | Refused:
    options = Options(promotions=folder / "promotions", device_memory=device_memory, cache=folder / "cache")
    return plan(small_run.run_of(folder, **changed), small_run.stacks_in(folder, **declared or {}), options)


def planned(folder: Path, **changed: Any) -> ExecutionPlan:
    answer = asked(folder, **changed)
    assert isinstance(answer, ExecutionPlan), answer
    return answer


def refused(folder: Path, **changed: Any) -> dict[str, str]:
    """Gate -> what was got."""
    answer = asked(folder, **changed)
    assert isinstance(answer, Refused), answer
    return {refusal.gate: refusal.got for refusal in answer.refusals}


def test_a_plan_of_a_third_party_s_stack(folder: Path) -> None:
    found = planned(folder)
    contract = small_run.run_of(folder)
    assert (found.stack, found.device, found.graph, found.base, found.model_type) == ("alpha", "CPU", "full_causal", "nf4", "llama")
    assert (found.digest, found.parity_digest) == (digest.digest(contract), digest.parity_digest(contract))
    assert (found.rows.total, found.rows.kept, found.rows.held_back, found.rows.left_out["rating"]) == (40, 30, 1, 10)
    assert found.steps == 3 * 2
    assert (found.proxy_stack, found.compat_mode, found.notes) == (None, False, ())
    assert found.parameters == sum(tensor.size for tensor in tiny_checkpoint.weights(vocab_size=30).values())


def test_the_vox_table_on_a_model_with_a_tokenizer_of_its_own_is_a_note(folder: Path) -> None:
    tiny_checkpoint.write(folder / "model", vocab_size=131)
    vox = {**BETA, "lane": "research", "data__tokenizer_mode": "vox"}
    told = "tokenizer vox, and the model has a tokenizer.json"
    assert [told in note for note in planned(folder, **vox).notes].count(True) == 1
    assert not any(told in note for note in planned(folder, **{**vox, "data__tokenizer_mode": "hf"}).notes)
    (folder / "model" / "tokenizer.json").unlink()
    assert not any(told in note for note in planned(folder, **vox).notes)


@pytest.mark.parametrize(("max_steps", "steps"), [(5, 5), (6, 6), (7, 6)])
def test_max_steps_ends_a_run_and_its_warm_up_is_held_against_that(folder: Path, max_steps: int, steps: int) -> None:
    assert planned(folder, exec__max_steps=max_steps, exec__warmup_steps=steps).steps == steps
    assert list(refused(folder, exec__max_steps=max_steps, exec__warmup_steps=steps + 1)) == ["warmup"]


def test_rows_that_are_held_back_make_no_steps(folder: Path) -> None:
    assert planned(folder, exec__batch_size=1, exec__grad_accum=1).steps == 3 * 29


def test_a_plan_is_json(folder: Path) -> None:
    found = planned(folder)
    assert ExecutionPlan.model_validate_json(found.model_dump_json()) == found
    assert json.loads(found.model_dump_json())["memory"]["shares"]["process"] == 1000


def test_the_memory_of_the_plan(folder: Path) -> None:
    memory = planned(folder).memory
    assert memory.shares is not None
    assert memory.total == memory.shares.total
    assert (memory.device_total, memory.device_free, memory.device_source) == (2**30, None, "as given")
    assert memory.shares.logits == 4 * 3 * 4 * 16 * 30
    needed = memory.shares.total
    assert isinstance(asked(folder, device_memory=-(-needed * 10 // 9)), ExecutionPlan)
    assert list(refused(folder, device_memory=needed * 10 // 9 - 1)) == ["memory"]


def test_the_machine_is_asked_where_no_size_is_given(folder: Path) -> None:
    memory = planned(folder, device_memory=None).memory
    assert memory.device_total is not None
    assert memory.device_free is not None
    assert memory.device_free <= memory.device_total


def test_memory_that_is_not_declared_or_not_known_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    undeclared, unseen = planned(folder, device_memory=None, exec__device="CUDA").notes
    assert "alpha declares nothing of its memory for this run on CUDA: not checked" in undeclared
    assert unseen.startswith("whether CUDA is here was not looked at: parity doctor does")
    assert planned(folder, device_memory=None, exec__device="CUDA").memory.device_total is None


def test_an_estimate_is_of_float32(folder: Path) -> None:
    assert list(refused(folder, device_memory=1, exec__compute_dtype="bfloat16")) == ["compute_dtype"]


@pytest.mark.parametrize(("available", "noted"), [(10, True), (2**29, False)])
def test_what_is_free_now_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch, available: int, noted: bool) -> None:
    memory = DeviceMemory(total=2**30, available=available, source="main memory")
    monkeypatch.setattr(device_memory, "measure", lambda device: memory)
    notes = planned(folder, device_memory=None).notes
    assert notes == (("now only 10 B are free on CPU, less than the run takes",) if noted else ())


def test_what_a_plan_notes(folder: Path) -> None:
    edge = {"artifact__deployment_target": "mobile_edge", "exec__batch_size": 1, "artifact__allow_placeholder_attention_merge": True}
    notes = planned(folder, declared={"requests": ["probe"]}, **edge).notes
    assert [any(word in note for note in notes) for word in ("`train`", "mobile_edge", "no full attention fidelity")] == [True] * 3
    assert len(notes) == 3


def test_steps_are_not_known_with_packing(folder: Path) -> None:
    research = {"lane": "research", "adapter__method": "lora"}
    found = planned(folder, **research, exec__packing=True, exec__warmup_steps=10**6)
    assert found.steps is None
    assert any("packing" in note for note in found.notes)


@pytest.mark.parametrize(
    ("fields", "eligible"),
    [({}, True), ({"exec__lm_head_only": True}, False), ({"exec__proxy_max_layers": 0}, False), ({"exec__proxy_max_layers": 1}, True)],
    ids=str,
)
def test_a_proxy_plan(folder: Path, fields: dict[str, Any], eligible: bool) -> None:
    tensors = tiny_checkpoint.squared(tiny_checkpoint.weights(vocab_size=30))
    tiny_checkpoint.write(folder / "model", tensors, vocab_size=30, **tiny_checkpoint.SQUARE)
    found = planned(folder, **PROXY, **fields)
    assert found.compat_mode
    assert found.proxy_stack is not None
    assert found.proxy_stack.model_dump() == {"eligible": eligible, "complete": True, "keys_matched": 2, "keys_expected": 2}


def test_a_proxy_plan_of_a_model_whose_middle_linears_are_not_square(folder: Path) -> None:
    assert list(refused(folder, **PROXY)) == ["proxy_square"]
    assert planned(folder, **PROXY, exec__lm_head_only=True).proxy_stack is not None


def test_a_checkpoint_without_a_middle_key(folder: Path) -> None:
    tensors = tiny_checkpoint.weights(vocab_size=30)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    tiny_checkpoint.write(folder / "model", tensors, vocab_size=30)
    assert list(refused(folder, device_memory=1)) == ["whole_weights"]
    assert "model.layers.1.self_attn.o_proj.weight" in refused(folder)["whole_weights"]
    found = planned(folder, **PROXY)
    assert found.proxy_stack is not None
    assert (found.proxy_stack.eligible, found.proxy_stack.complete, found.proxy_stack.keys_matched) == (False, False, 1)
    assert "1 of 2 middle keys: the LM head alone is trained" in found.notes
    assert list(refused(folder, **PROXY, exec__require_full_proxy_stack=True)) == ["full_proxy_stack"]


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "model" / "config.json").write_text("{}")
    found = refused(folder, exec__compute_dtype="bfloat16", exec__lm_head_only=True, exec__resume_from=str(folder / "gone"))
    assert list(found) == ["model", "data", "resume_from", "compute_dtype", "proxy_fields"]
    assert "config.json: model_type: None" in found["model"]
    assert "rows.jsonl:1: no" in found["data"] or "rows.jsonl:1" in found["data"]


def test_several_faults_of_a_model_are_several_refusals(folder: Path) -> None:
    answer = asked(folder, model__hf_repo=None, model__tokenizer_json=str(folder / "nothing.json"))
    assert isinstance(answer, Refused)
    assert [refusal.gate for refusal in answer.refusals] == ["model", "model", "model"]


def test_a_model_that_was_not_fetched(folder: Path) -> None:
    assert list(refused(folder, model__hf_repo="nobody/nothing")) == ["model"]


def test_no_model_at_all_is_no_tokenizer_too(folder: Path) -> None:
    assert set(refused(folder, model__hf_repo=None)) == {"model", "tokenizer_file"}


@pytest.mark.parametrize("name", ["x" * 4000, "~nobody-of-that-name/x", "a\x9b31mb", ".", "/proc/self/mem"])
def test_names_that_no_file_has(folder: Path, name: str) -> None:
    found = refused(folder, data__train_file=name, exec__resume_from=name + "/x", model__hf_repo=name)
    assert {"data", "model", "resume_from"} <= set(found)
    assert not any("\x9b" in got for got in found.values())


def test_a_train_file_that_is_a_pipe_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert list(refused(folder, data__train_file=str(folder / "pipe"))) == ["data"]


def test_the_model_s_own_template(folder: Path) -> None:
    asking = {"data__template": "tokenizer"}
    assert list(refused(folder, **asking)) == ["own_template"]
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert planned(folder, **asking).stack == "alpha"
    (folder / "model" / "tokenizer_config.json").write_text("[")
    assert list(refused(folder, **asking)) == ["model"]


# Resuming


def checkpoint_of(folder: Path, contract_digest: str) -> Path:
    """What a checkpoint says of itself; the planner does not open its tensors."""
    shapes = {"layers.0.q_proj": (np.ones((1, 4), np.float32), np.ones((4, 1), np.float32))}
    adapter = Adapter(
        matrices=shapes, places={"layers.0.q_proj": Place(key="model.layers.0.self_attn.q_proj.weight")}, layer_order=("layers.0.q_proj",),
        rank=1, alpha=2.0, vocab=30, d_model=4,
    )  # fmt: skip
    moments = {f"layers.0.q_proj.{half}": matrix for half, matrix in zip(("lora_a", "lora_b"), shapes["layers.0.q_proj"], strict=True)}
    write(
        folder / "checkpoint",
        TrainingCheckpoint(
            adapter=adapter, m=moments, v=moments, stack="alpha", packages={"twostack": "1"}, contract_digest=contract_digest,
            base_sha256="0" * 64, data={}, updates=3, seed=42,
            progress=Progress(step=3, epoch=0, step_of_epoch=3, skipped=0, rows_of_epoch=3, skipped_of_epoch=0),
        ),
    )  # fmt: skip
    return folder / "checkpoint"


def test_a_run_goes_on_from_its_own_checkpoint_and_from_no_other(folder: Path) -> None:
    begun = small_run.run_of(folder)
    there = str(checkpoint_of(folder, digest.run_digest(begun)))
    assert planned(folder, exec__resume_from=there).digest != digest.digest(begun)
    assert "a checkpoint of the run" in refused(folder, exec__resume_from=there, exec__learning_rate=1e-3)["resume_from"]


@pytest.mark.parametrize("name", ["model", "rows.jsonl", "gone", "~nobody-of-that-name"])
def test_what_is_no_checkpoint_is_refused(folder: Path, name: str) -> None:
    path = name if name.startswith("~") else str(folder / name)
    assert set(refused(folder, exec__resume_from=path)) == {"resume_from"}


@pytest.mark.parametrize(("text", "shown"), [("nope\udcff.yaml", "nope\\udcff.yaml"), ("a\n\x1b[31mb", "a\\n\\x1b[31mb")])
def test_a_refusal_is_text_for_a_terminal_whatever_a_path_holds(text: str, shown: str) -> None:
    assert Refusal(gate="model", got=text, allowed="a file", remedy="correct the path").got == shown


# Promotion


def record(folder: Path, *, decision: str = "PROMOTE", **changed: Any) -> Path:
    packages = {name: version(name) for name in ("twostack", "numpy")}
    shard = folder / "model" / "model.safetensors"
    binding: dict[str, Any] = {
        "stack": "beta", "packages": packages, "base_sha256": base_sha256([files.sha256_of(shard)]), "base": "none",
        "graph": "full_causal", "objective": "chatml_supervised", "suite": "suite 1",
    }  # fmt: skip
    value = {"decision": decision, "reasons": ["because"], "cycles": 2, "evidence": {}}
    return write_promotion(folder / "promotions", PromotionRecord(binding=Binding(**{**binding, **changed}), **value))


def test_a_research_stack_needs_a_record(folder: Path) -> None:
    answer = asked(folder, **BETA)
    assert isinstance(answer, Refused)
    [refusal] = answer.refusals
    assert refusal.gate == "research_lane"
    assert f"{folder / 'promotions' / 'promotion-beta-*.json'} with decision PROMOTE" in refusal.allowed
    assert f"base none, graph full_causal, objective chatml_supervised, twostack {version('twostack')}" in refusal.allowed


def test_a_record_promotes(folder: Path) -> None:
    record(folder)
    assert planned(folder, **BETA).stack == "beta"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"decision": "HOLD"}, "says HOLD"),
        ({"packages": {"twostack": "0.0.1"}}, "another packages"),
        ({"packages": {"twostack": "0.0.1"}, "base_sha256": "0" * 64}, "another packages"),
        ({"base": "nf4"}, "another base"),
        ({"graph": "qlora_proxy_v1", "objective": "last_k"}, "another graph, objective"),
        ({"base_sha256": "0" * 64}, "another base_sha256"),
    ],
    ids=str,
)
def test_a_record_of_another_run_does_not(folder: Path, changed: dict[str, Any], words: str) -> None:
    record(folder, **changed)
    assert words in refused(folder, **BETA)["research_lane"]


def test_a_record_of_a_stack_whose_name_begins_alike_is_none(folder: Path) -> None:
    assert record(folder, stack="beta-x").match("promotion-beta-*.json")
    assert "there:" not in refused(folder, **BETA)["research_lane"]


def test_a_damaged_record_is_told_and_no_error(folder: Path) -> None:
    path = record(folder)
    path.write_text("{")
    assert f"{path}: got text that is no JSON" in refused(folder, **BETA)["research_lane"]
    record(folder)
    path.rename(path.with_name("promotion-beta-other.json"))
    assert "a record of another binding" in refused(folder, **BETA)["research_lane"]


def test_a_changed_base_is_not_the_promoted_one(folder: Path) -> None:
    record(folder)
    tensors = tiny_checkpoint.weights(vocab_size=30)
    tensors["model.norm.weight"] = np.nextafter(tensors["model.norm.weight"], np.float32(9))
    tiny_checkpoint.write(folder / "model", tensors, vocab_size=30)
    assert "another base_sha256" in refused(folder, **BETA)["research_lane"]


def test_the_record_s_name_matches_what_is_looked_for(folder: Path) -> None:
    path = record(folder)
    assert path.match("promotion-beta-*.json")
    assert path.name == record_name(PromotionRecord.model_validate_json(path.read_bytes()).binding)
