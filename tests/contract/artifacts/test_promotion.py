"""The promotion record: bound to one combination, named after it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.artifacts.promotion import Binding, PromotionRecord, base_sha256, read_promotion, record_name, write_promotion
from contract.errors import ContractError, ContractErrors
from tests.contract.artifacts.adapter_cases import read_or_refused, refused

BINDING: dict[str, Any] = {
    "stack": "tinygrad_lora", "packages": {"twostack": "0.1.0", "tinygrad": "0.14"}, "base_sha256": "c" * 64, "base": "none",
    "graph": "full_causal", "objective": "chatml_supervised", "suite": "smoke 3",
}  # fmt: skip
OTHER: dict[str, Any] = {
    "stack": "tinygrad_lora2", "packages": {"twostack": "0.1.0", "tinygrad": "0.15"}, "base_sha256": "d" * 64, "base": "nf4",
    "graph": "qlora_proxy_v1", "objective": "last_k", "suite": "smoke 4",
}  # fmt: skip


def record(**changed: Any) -> PromotionRecord:
    facts = {"binding": Binding(**BINDING), "decision": "PROMOTE", "reasons": ("better",), "cycles": 2, "evidence": {"a.json": "e" * 64}}
    return PromotionRecord(**(facts | changed))


@pytest.mark.parametrize("decision", ["PROMOTE", "REJECT", "HOLD", "INVALID"])
def test_written_then_read_is_the_same_under_a_name_that_its_binding_gives(tmp_path: Path, decision: str) -> None:
    path = write_promotion(tmp_path, record(decision=decision))
    assert path.name == record_name(Binding(**BINDING))
    assert read_promotion(path) == record(decision=decision)
    before = path.read_bytes()
    write_promotion(tmp_path, record(decision=decision))
    assert path.read_bytes() == before


def test_the_name_is_sha_256_of_the_binding_as_canonical_json() -> None:
    """Written out, so that another program could compute it."""
    text = (
        '{"base":"none","base_sha256":"' + "c" * 64 + '","graph":"full_causal","objective":"chatml_supervised",'
        '"packages":{"tinygrad":"0.14","twostack":"0.1.0"},"stack":"tinygrad_lora","suite":"smoke 3"}'
    )
    assert record_name(Binding(**BINDING)) == f"promotion-tinygrad_lora-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    assert record_name(Binding(**(BINDING | {"packages": dict(reversed(BINDING["packages"].items()))}))) == record_name(Binding(**BINDING))


@pytest.mark.parametrize("field", Binding.model_fields)
def test_each_field_of_the_binding_changes_the_name_and_a_record_under_another_s_is_refused(tmp_path: Path, field: str) -> None:
    other = Binding(**(BINDING | {field: OTHER[field]}))
    assert record_name(other) != record_name(Binding(**BINDING))
    path = write_promotion(tmp_path, record())
    path = path.rename(tmp_path / record_name(other))
    with pytest.raises(ContractError, match="another binding") as error:
        read_promotion(path)
    refused(error)


def test_the_base_s_hash_is_its_file_s_own_or_that_of_all_in_any_order() -> None:
    assert base_sha256(["a" * 64]) == "a" * 64
    several = base_sha256(["a" * 64, "b" * 64])
    assert several == base_sha256(["b" * 64, "a" * 64]) == hashlib.sha256(("a" * 64 + "\n" + "b" * 64 + "\n").encode()).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "x"}, {"version": 2}, {"version": True}, {"decision": "promote"}, {"reasons": []}, {"reasons": "better"}, {"cycles": -1},
        {"cycles": 2.5}, {"evidence": {"a": "b"}}, {"binding": BINDING | {"suite": ""}}, {"binding": BINDING | {"stack": "a/b"}},
        {"binding": BINDING | {"base_sha256": "C" * 64}}, {"binding": {}}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_record_that_is_not_sound_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = write_promotion(tmp_path, record())
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises((ContractError, ContractErrors)) as error:
        read_promotion(path)
    assert str(path) in refused(error)


_json = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dictionaries(st.text(max_size=4), st.integers())


@given(changed=st.dictionaries(st.sampled_from([*PromotionRecord.model_fields, "x"]), _json, max_size=2))
def test_any_value_in_any_field_is_read_or_refused(changed: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = write_promotion(Path(name), record())
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        read_or_refused(read_promotion, path)
