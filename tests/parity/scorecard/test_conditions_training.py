"""What is known of a condition's training: read beside its adapters, and equal exactly where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.artifacts.manifest import manifest_of, write_manifest
from contract.artifacts.promotion import base_sha256
from contract.errors import ContractError
from contract.run.digest import parity_digest
from contract.run.spec import FineTuneContract
from contract.worker.discover import discover
from parity.scorecard.conditions_training import Training, training_of

STACKS = discover()


def trained(folder: Path, seed: int, *, stack: str = "torch_qlora", weights: str = "2", content: bytes = b"", **sections: Any) -> Path:
    """A run's folder, as finetune train leaves it; its adapter's folder."""
    values: dict[str, Any] = {"model": {"hf_repo": "m"}, "data": {"train_file": "t.jsonl"}, "exec": {"seed": seed}}
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    packages = {"twostack": "0.1.0", "torch": "2", "tinygrad": "0.14", "python": "3.11"}
    manifest = manifest_of(
        FineTuneContract.model_validate(values), stack=stack, packages=packages, device="CPU", git_sha=None,
        data={"t.jsonl": "1" * 64}, weights={"model.safetensors": weights * 64},
    )  # fmt: skip
    write_manifest(folder, manifest)
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter.safetensors").write_bytes(content or f"{folder.name} {seed}".encode())
    return folder / "adapter"


def training(folder: Path, **changed: Any) -> Training:
    found = training_of({seed: trained(folder / str(seed), seed, **changed) for seed in (1, 2)}, STACKS)
    assert found is not None
    return found


def test_what_a_manifest_says(tmp_path: Path) -> None:
    found = training(tmp_path)
    contract = FineTuneContract.model_validate({"model": {"hf_repo": "m"}, "data": {"train_file": "t.jsonl"}})
    assert (found.stack, found.base, found.graph, found.objective) == ("torch_qlora", "nf4", "full_causal", "chatml_supervised")
    assert found.base_sha256 == base_sha256(["2" * 64])
    assert found.parity_digest == parity_digest(contract)
    assert set(found.packages) == {"twostack", *STACKS["torch_qlora"].capabilities.packages}
    assert [run.seed for run in found.runs] == [1, 2]
    hashes = [{run.initial_sha256, run.order_sha256, run.adapter_sha256} for run in found.runs]
    assert not hashes[0] & hashes[1]


def test_two_stacks_of_one_contract_begin_alike_and_end_apart(tmp_path: Path) -> None:
    one = training(tmp_path / "one")
    other = training(tmp_path / "other", stack="tinygrad_lora", content=b"other")
    for left, right in zip(one.runs, other.runs, strict=True):
        assert (left.initial_sha256, left.order_sha256) == (right.initial_sha256, right.order_sha256)
        assert left.adapter_sha256 != right.adapter_sha256


OTHER_START: tuple[dict[str, Any], ...] = ({"adapter": {"rank": 8}}, {"adapter": {"target_modules": ["q_proj"]}}, {"weights": "3"})
OTHER_ORDER: tuple[dict[str, Any], ...] = (
    {"exec": {"batch_size": 2}}, {"exec": {"epochs": 1}}, {"data": {"validation_split": 0.1}}, {"data": {"curriculum": "difficulty"}},
)  # fmt: skip
NEITHER: tuple[dict[str, Any], ...] = ({"adapter": {"alpha": 8.0}}, {"exec": {"learning_rate": 1e-3}}, {"quant": {"block_size": 32}})


@pytest.mark.parametrize("changed", [*OTHER_START, *OTHER_ORDER, *NEITHER], ids=str)
def test_what_changes_the_start_and_the_order(tmp_path: Path, changed: dict[str, Any]) -> None:
    usual, found = training(tmp_path / "one").runs[0], training(tmp_path / "other", **changed).runs[0]
    assert (usual.initial_sha256 != found.initial_sha256) == (changed in OTHER_START)
    assert (usual.order_sha256 != found.order_sha256) == (changed in OTHER_ORDER)


def test_a_run_of_another_seed_or_make_is_refused(tmp_path: Path) -> None:
    one, wrong = trained(tmp_path / "a", 1), trained(tmp_path / "b", 3)
    with pytest.raises(ContractError, match="a run of seed 3"):
        training_of({1: one, 2: wrong}, STACKS)
    with pytest.raises(ContractError, match="another parity_digest"):
        training_of({1: one, 2: trained(tmp_path / "c", 2, exec={"learning_rate": 1e-3})}, STACKS)
    with pytest.raises(ContractError, match="a run of nobody"):
        training_of({1: trained(tmp_path / "d", 1, stack="nobody")}, STACKS)


def test_without_a_manifest_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert training_of({1: tmp_path / "adapter"}, STACKS) is None
    assert training_of({}, STACKS) is None
