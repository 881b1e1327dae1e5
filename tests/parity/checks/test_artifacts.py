"""Tier E on stacks that are the reference but for what a test changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from contract.artifacts import tensors
from contract.artifacts.saved import ADAPTER, PEFT
from contract.model import headers
from contract.worker.capabilities import Capabilities
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import artifact_checkpoint, artifact_files, artifacts
from parity.checks.artifact_case import ArtifactCase
from parity.checks.artifact_checkpoint import CheckpointCase
from parity.checks.check import Case, Check
from parity.checks.packed import pack, unpack
from parity.engine import Engine
from parity.judge import perturb
from parity.profiles import PROFILES
from parity.report.record import Result, Status
from tests.parity.artifact_stack import CAPABILITIES, WITNESS, ArtifactStack
from tests.parity.graph_stack import with_lora

LLAMA, GPT2 = 0, 1


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, int], Case]:
    """Cases by check and number; what is computed of one is kept, as a run would not."""
    return {}


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is the same but for a rounding, or far off."""
    respond = perturb.respond
    monkeypatch.setattr(perturb, "respond", lambda *given, **options: respond(*given, **{**options, "runs": 3}))
    for case_type in (ArtifactCase, CheckpointCase):
        monkeypatch.setattr(case_type, "forget", lambda self: None)


@pytest.fixture
def run(made: dict[tuple[str, int], Case]) -> Callable[..., dict[tuple[str, ...], Result]]:
    """Asks one check of one case; (question, stacks) -> result."""

    def ask(check_id: str, *stacks: ArtifactStack, which: int = 0, witness: str = "") -> dict[tuple[str, ...], Result]:
        check = next(check for check in artifacts.CHECKS if check.id == check_id)
        if (check_id, which) not in made:
            assert check.fixed_cases is not None
            made[check_id, which] = list(check.fixed_cases())[which]
        case = made[check_id, which]
        declared = {stack.name: WITNESS if stack.name == witness else CAPABILITIES for stack in stacks}
        return asked(dataclasses.replace(check, fixed_cases=lambda: iter([case]), fixed_count=1), stacks, declared)

    return ask


def asked(check: Check, stacks: tuple[ArtifactStack, ...], declared: Mapping[str, Capabilities]) -> dict[tuple[str, ...], Result]:
    infos = [StackInfo(name=name, command=("nothing",), capabilities=capabilities) for name, capabilities in declared.items()]
    devices = [Device(info=info, name="CPU", dtypes=frozenset({"float32", "float64"})) for info in infos]
    cells = [cell for cell in matrix.matrix([check], devices) if cell.plan is not None]
    processes = cast("Mapping[str, StackProcess]", {stack.name: stack for stack in stacks})
    engine = Engine(processes, declared, profile=PROFILES["ci"], seed=1, rerun="--seed 1", statistical=100)
    return {(result.question, result.dtype, *result.stacks): result for result in engine.run(check, cells)}


def failed(results: Mapping[tuple[str, ...], Result]) -> dict[tuple[str, ...], str]:
    return {key: result.reason for key, result in results.items() if result.status is Status.FAIL}


Run = Callable[..., dict[tuple[str, ...], Result]]


@pytest.mark.parametrize("check_id", [check.id for check in artifacts.CHECKS])
def test_right_stacks_pass(run: Run, check_id: str) -> None:
    stacks = ArtifactStack("torch_qlora"), ArtifactStack("tinygrad_lora")
    results = run(check_id, *stacks, which=GPT2 if check_id in ("e.saved", "e.loaded", "e.converted", "e.merged") else 0)
    assert {result.status for result in results.values()} == {Status.PASS}, [result.reason for result in results.values()]
    assert all(result.controls.caught == result.controls.applied > 0 for result in results.values())


def test_a_witness_is_asked_in_float32_and_compared_with_each_stack(run: Run) -> None:
    results = run("e.loaded", ArtifactStack("one"), ArtifactStack("two"), ArtifactStack("third"), witness="third")
    assert {result.status for result in results.values()} == {Status.PASS}
    assert {key for key in results if "third" in key} == {
        ("precision", "float32", "third"), ("same_function", "float32", "one", "third"), ("same_function", "float32", "two", "third"),
    }  # fmt: skip
    assert ("same_function", "float32", "one", "two") not in results


def test_a_witness_s_other_opinion_is_seen(run: Run) -> None:
    wrong = ArtifactStack("third", loads=with_lora(alpha_pattern={}))
    found = failed(run("e.loaded", ArtifactStack("one"), wrong, witness="third"))
    assert set(found) == {("precision", "float32", "third"), ("same_function", "float32", "one", "third")}


CHANGED: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "saved without rslora": ("e.saved", LLAMA, {"saves": with_lora(rslora=False)}, "v2: scale"),
    "saved without alpha_pattern": ("e.saved", LLAMA, {"saves": with_lora(alpha_pattern={})}, "v2: scale"),
    "loaded without rslora": ("e.loaded", LLAMA, {"loads": with_lora(rslora=False)}, "base with adapter"),
    "a logit off by 1e-9": ("e.loaded", GPT2, {"spoil": lambda name, answer: answer * (1 + 1e-9)}, "base with adapter"),
    "a base off by 1e-9": ("e.folder", LLAMA, {"spoil": lambda name, answer: answer * (1 + 1e-9)}, "logits of base"),
    "a full circle off by 1e-9": ("e.converted", LLAMA, {"spoil": lambda name, answer: answer * (1 + 1e-9)}, "full-circle"),
    "merged without scale": ("e.merged", LLAMA, {"merges": lambda linear: dataclasses.replace(linear, scale=1.0)}, "W'"),
    "merged with B turned": ("e.merged", LLAMA, {"merges": lambda linear: dataclasses.replace(linear, b_OR=-linear.b_OR)}, "W'"),
    "merged and not put in place": ("e.merged", LLAMA, {"places": False}, "after merging"),
    "a cached logit off by 1e-3": (
        "e.kv_cache", 0, {"spoil": lambda name, answer: answer * (1 + 1e-3 * name.startswith("cached"))}, "through the cache",
    ),
    "begins anew": ("e.checkpoint", 0, {"resumes": lambda path: None}, "checkpoint of tinygrad_lora accepted"),
    "refuses without words": ("e.checkpoint", 0, {"refuses": "no"}, "refused without a word of both stacks"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_wrong_is_seen(run: Run, name: str) -> None:
    check_id, which, changed, place = CHANGED[name]
    results = run(check_id, ArtifactStack("torch_qlora", **changed), which=which)
    found = failed(results)
    assert found, results
    assert any(place in reason for reason in found.values()), found


def test_sixteen_bits_that_are_read_as_other_sixteen_are_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "DTYPES", {**tensors.DTYPES, "BF16": np.dtype("<f2")})
    assert any("base with narrow" in reason for reason in failed(run("e.loaded", ArtifactStack("one"), which=GPT2)).values())


def test_one_model_s_files_are_in_bfloat16(run: Run, made: dict[tuple[str, int], Case]) -> None:
    for which, dtype in ((LLAMA, "F32"), (GPT2, "BF16")):
        run("e.loaded", ArtifactStack("one"), which=which)
        case = cast(ArtifactCase, made["e.loaded", which])
        for file in (f"{artifact_files.BASE}/model.safetensors", f"{artifact_files.NARROW}/adapter_model.safetensors"):
            assert {stored.dtype for stored in headers.read(case.folder / file).values()} == {dtype}


def test_files_that_differ_between_stacks_are_seen_byte_for_byte(run: Run) -> None:
    results = run("e.saved", ArtifactStack("one"), ArtifactStack("two", saves=with_lora(alpha=7.25)))
    assert ("same_function", "float32", "one", "two") in failed(results)


SPOILT: dict[str, tuple[str, str, bytes, bytes]] = {
    "PEFT's alpha": ("as-peft", "adapter_config.json", b'"lora_alpha": ', b'"lora_alpha": 1'),
    "v2's rslora": ("as-v2", "candle_qlora_adapter_meta.json", b'"rslora": true', b'"rslora": false'),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_conversion_that_changes_a_byte_is_seen(run: Run, made: dict[tuple[str, int], Case], name: str, tmp_path: Path) -> None:
    folder, file, before, after = SPOILT[name]
    run("e.converted", ArtifactStack("one"))
    case = cast(ArtifactCase, made["e.converted", 0])
    path = case.folder / folder / file
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    try:
        found = failed(run("e.converted", ArtifactStack("one")))
    finally:
        path.write_bytes(content)
    assert any(file in reason for reason in found.values()), found


def test_the_run_of_checkpoints_travels() -> None:
    case = next(artifact_checkpoint.cases())
    packed = pack(case)
    assert unpack(packed).name == case.name
    with pytest.raises(ValueError, match="there is '2 steps of a Llama' alone"):
        unpack(dataclasses.replace(packed, fields={"name": "3 steps"}))


def test_cases_travel(run: Run, made: dict[tuple[str, int], Case]) -> None:
    run("e.saved", ArtifactStack("one"))
    case = cast(ArtifactCase, made["e.saved", 0])
    again = unpack(pack(case))
    assert isinstance(again, ArtifactCase)
    assert again.folder != case.folder
    names = (artifact_files.BASE, ADAPTER, PEFT, artifact_files.V2)
    for name in names:
        files = sorted((case.folder / name).iterdir())
        assert [path.read_bytes() for path in files] == [path.read_bytes() for path in sorted((again.folder / name).iterdir())]
        assert files
    assert np.array_equal(again.batch.ids, case.batch.ids)
