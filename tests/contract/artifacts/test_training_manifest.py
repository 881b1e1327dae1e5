"""training_manifest.json: what a run was; fields that its contract contradicts are refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.artifacts.manifest import FILE, TrainingManifest, manifest_of, read_manifest, write_manifest
from contract.errors import ContractError, ContractErrors
from contract.run.digest import digest, parity_digest
from contract.run.spec import ArtifactSpec, DataSpec, FineTuneContract, ModelSpec
from tests.contract.artifacts.adapter_cases import read_or_refused, refused


def manifest(**contract: Any) -> TrainingManifest:
    facts = {"model": ModelSpec(hf_repo="a/b"), "data": DataSpec(train_file="t.jsonl"), "graph": "full_causal", "objective": "last_k"}
    return manifest_of(
        FineTuneContract(**(facts | contract)), stack="torch_qlora", packages={"twostack": "0.1.0"}, device="CPU", git_sha="0" * 40,
        data={"t.jsonl": "1" * 64}, weights={"model.safetensors": "2" * 64}, notes=("a note",),
    )  # fmt: skip


def test_written_then_read_is_the_same_and_says_what_the_contract_says(tmp_path: Path) -> None:
    wanted = manifest()
    write_manifest(tmp_path, wanted)
    before = (tmp_path / FILE).read_bytes()
    assert read_manifest(tmp_path / FILE) == wanted
    assert (wanted.contract_digest, wanted.parity_digest) == (digest(wanted.contract), parity_digest(wanted.contract))
    assert (wanted.graph, wanted.objective, wanted.execution_kernel) == ("full_causal", "last_k", "torch_qlora")
    write_manifest(tmp_path, wanted)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("contract", "claims"),
    [
        ({}, True), ({"graph": "qlora_proxy_v1"}, False), ({"artifact": ArtifactSpec(allow_placeholder_attention_merge=True)}, False),
    ],
)  # fmt: skip
def test_the_proxy_graph_and_a_contract_that_says_so_claim_no_full_attention_fidelity(contract: dict[str, Any], claims: bool) -> None:
    assert manifest(**contract).claims_full_attention_fidelity is claims


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2}, {"contract_digest": "0" * 64}, {"parity_digest": "0" * 64}, {"graph": "qlora_proxy_v1"},
        {"objective": "chatml_supervised"}, {"claims_full_attention_fidelity": False}, {"git_sha": "abc"}, {"data": {"a": "b"}},
        {"contract": {}}, {"packages": {}}, {"notes": ["a\nb"]}, {"unknown": 1}, {"execution_kernel": ""},
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_sound_or_contradicts_its_contract(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_manifest(tmp_path, manifest())
    path = tmp_path / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises((ContractError, ContractErrors)) as error:
        read_manifest(path)
    assert str(path) in refused(error)
    assert next(iter(changed)) in str(error.value)


_json = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dictionaries(st.text(max_size=4), st.integers())


@given(changed=st.dictionaries(st.sampled_from([*TrainingManifest.model_fields, "x"]), _json, max_size=2))
def test_any_value_in_any_field_is_read_or_refused(changed: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_manifest(Path(name), manifest())
        path = Path(name) / FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        read_or_refused(read_manifest, path)
