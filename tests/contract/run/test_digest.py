"""Digests: every field counts, order and spelling do not, and another program could compute them.

The golden texts follow RFC 8785; the numbers and the order of keys are those of its appendix B and its section 3.2.3.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.run.digest import NOT_FOR_PARITY, canonical_contract, canonical_json, digest, parity_digest, run_digest
from contract.run.spec import FineTuneContract
from tests.contract.run.contract_draws import DRAWN, FIELDS, REQUIRED, Path, contracts, nested

SMALL = nested({("model", "hf_repo"): "smollm2-135m", ("data", "train_file"): "train.jsonl"})

SMALL_TEXT = (
    '{"adapter":{"alpha":32,"alpha_pattern":{},"dropout":0,"method":"qlora","rank":16,"rank_pattern":{},"rslora":false,'
    '"target_modules":[],"targets":"full_graph"},"artifact":{"adapter_schema_version":3,"allow_placeholder_attention_merge":false,'
    '"deployment_target":"workstation"},"contract_version":1,"data":{"context_filter":null,"curriculum":"none","min_rating":3,'
    '"parse_special_tokens":false,"skip_bad_rows":false,"system_prompt":null,"template":"chatml","tokenizer_mode":"hf",'
    '"train_file":"train.jsonl","truncation":"left","validation_split":0.05},"exec":{"adapter_tag":null,"allow_cpu_fallback":false,'
    '"batch_size":4,"ce_last_k":16,'
    '"checkpoint_every":500,"compute_dtype":"float32","device":"CPU","epochs":3,"grad_accum":4,"learning_rate":0.0002,'
    '"lm_head_only":false,"max_grad_norm":1,"max_skip_rate":0.05,"max_steps":null,"max_vram_fraction":0.9,"optimizer":"adamw","packing":false,'
    '"proxy_max_layers":null,"require_full_proxy_stack":false,"resume_from":null,"seed":42,"seq_len":256,"warmup_steps":100,'
    '"weight_decay":0.01},"graph":"full_causal","lane":"production","model":{"config_json":null,"hf_repo":"smollm2-135m",'
    '"tokenizer_json":null,"weight_shards":[]},"objective":"chatml_supervised","quant":{"base":"nf4","block_size":64,'
    '"double_quant":true},"stack":null}'
)
FULL = nested(
    {
        ("lane",): "research", ("stack",): "tinygrad_lora", ("model", "hf_repo"): "é/😀", ("model", "weight_shards"): ["b", "é", "a", "😀"],
        ("data", "train_file"): 'a"b\\c\u2028\x80', ("data", "system_prompt"): "two\nlines\t\x1f", ("adapter", "alpha"): 1e-7,
        ("adapter", "target_modules"): ["v_proj", "q_proj"], ("adapter", "rank_pattern"): {"q_proj": 8, "layers.3.q_proj": 4},
        ("adapter", "alpha_pattern"): {"q_proj": 12.5}, ("exec", "learning_rate"): 1.25e-5, ("exec", "seed"): 2**63 - 1,
        ("exec", "weight_decay"): 1000, ("exec", "device"): "webgpu",
    }
)  # fmt: skip
FULL_TEXT = (
    '{"adapter":{"alpha":1e-7,"alpha_pattern":{"q_proj":12.5},"dropout":0,"method":"qlora","rank":16,'
    '"rank_pattern":{"layers.3.q_proj":4,"q_proj":8},"rslora":false,"target_modules":["q_proj","v_proj"],"targets":"full_graph"},'
    '"artifact":{"adapter_schema_version":3,"allow_placeholder_attention_merge":false,"deployment_target":"workstation"},'
    '"contract_version":1,"data":{"context_filter":null,"curriculum":"none","min_rating":3,"parse_special_tokens":false,'
    '"skip_bad_rows":false,"system_prompt":"two\\nlines\\t\\u001f","template":"chatml","tokenizer_mode":"hf",'
    '"train_file":"a\\"b\\\\c\u2028\x80","truncation":"left","validation_split":0.05},"exec":{"adapter_tag":null,"allow_cpu_fallback":false,'
    '"batch_size":4,"ce_last_k":16,'
    '"checkpoint_every":500,"compute_dtype":"float32","device":"WEBGPU","epochs":3,"grad_accum":4,"learning_rate":0.0000125,'
    '"lm_head_only":false,"max_grad_norm":1,"max_skip_rate":0.05,"max_steps":null,"max_vram_fraction":0.9,"optimizer":"adamw","packing":false,'
    '"proxy_max_layers":null,"require_full_proxy_stack":false,"resume_from":null,"seed":"9223372036854775807","seq_len":256,'
    '"warmup_steps":100,"weight_decay":1000},"graph":"full_causal","lane":"research","model":{"config_json":null,"hf_repo":"é/😀",'
    '"tokenizer_json":null,"weight_shards":["a","b","é","😀"]},"objective":"chatml_supervised","quant":{"base":"nf4","block_size":64,'
    '"double_quant":true},"stack":"tinygrad_lora"}'
)
GOLDEN = [
    (
        SMALL,
        SMALL_TEXT,
        "d0d7a123842ea377a5294d333a313e3de7c7507f8a15cdcc5b8e4badb0f0b9c3",
        "23a1eebdb100e5b379880c61ac1bf775f365f19f3396ab22d0130b9fe2602953",
    ),
    (
        FULL,
        FULL_TEXT,
        "b1e575c6b841bd54b5de0b32c6781772466a40fa4b164a7a98ac6fff96ea604a",
        "45fb3235571258c0e65cb680d8dd71ade6e5da497c57cf630fcd0dee2df4db87",
    ),
]
"""Contract, canonical text, and two SHA-256 as `sha256sum` gives them: of that text, and of that text without CUTS."""

CUTS = (
    '"lane":"production",', '"lane":"research",', ',"stack":null', ',"stack":"tinygrad_lora"', '"device":"CPU",',
    '"device":"WEBGPU",', '"allow_cpu_fallback":false,', '"seed":42,', '"seed":"9223372036854775807",',
    '"resume_from":null,', '"train_file":"train.jsonl",', '"train_file":"a\\"b\\\\c\u2028\x80",',
    '"config_json":null,"hf_repo":"smollm2-135m","tokenizer_json":null,"weight_shards":[]',
    '"config_json":null,"hf_repo":"é/😀","tokenizer_json":null,"weight_shards":["a","b","é","😀"]',
)  # fmt: skip


def read(contract: dict[str, Any]) -> FineTuneContract:
    return FineTuneContract.model_validate(contract)


@pytest.mark.parametrize(("contract", "text", "sha256", "parity"), GOLDEN)
def test_golden(contract: dict[str, Any], text: str, sha256: str, parity: str) -> None:
    assert canonical_contract(read(contract)) == text
    assert hashlib.sha256(text.encode()).hexdigest() == sha256
    assert (digest(read(contract)), parity_digest(read(contract))) == (sha256, parity)
    for cut in CUTS:
        text = text.replace(cut, "")
    assert hashlib.sha256(text.encode()).hexdigest() == parity


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_another_process_with_another_hash_seed_gives_the_same(seed: str) -> None:
    code = (
        "import json, sys\nfrom contract.run.digest import digest, parity_digest\nfrom contract.run.spec import FineTuneContract\n"
        "for contract in map(FineTuneContract.model_validate, json.load(sys.stdin)): print(digest(contract), parity_digest(contract))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([contract for contract, *_ in GOLDEN]), capture_output=True, text=True, timeout=60,
        check=True, env=os.environ | {"PYTHONHASHSEED": seed},
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{sha256} {parity}" for _, _, sha256, parity in GOLDEN]


# ---- every field counts


def another(schema: dict[str, Any], value: Any) -> Any:
    """A value that the schema lets in and that is not `value`; beyond the schema where it lets in one alone."""
    if "anyOf" in schema:
        [part] = [part for part in schema["anyOf"] if part["type"] != "null"]
        return another(part, part.get("minimum", "zz") if value is None else value)
    if "const" in schema:
        return value + 1
    if "enum" in schema:
        return schema["enum"][schema["enum"].index(value) - 1]
    kind = schema["type"]
    if kind == "array":
        return [*value, f"z{len(value)}"]
    if kind == "object":
        return {**value, f"z{len(value)}": 2}
    if kind == "string":
        return f"{value}Z"
    if kind == "number":
        return value / 2 + schema.get("maximum", schema.get("exclusiveMaximum")) / 4
    return (not value) if kind == "boolean" else value + 1 if value < schema["maximum"] else value - 1


def at(contract: FineTuneContract, path: Path) -> Any:
    value: Any = contract.model_dump(mode="json")
    for name in path:
        value = value[name]
    return value


def changed(contract: FineTuneContract, path: Path, value: Any) -> FineTuneContract:
    """The contract with one field changed; validated but for a field that may have one value alone."""
    if "const" in FIELDS[path]:
        return contract.model_copy(update={path[0]: value})
    document = contract.model_dump(mode="json")
    section = document
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return read(document)


def every_field_changed() -> FineTuneContract:
    contract = read(SMALL)
    for path, schema in FIELDS.items():
        if "const" not in schema:
            contract = changed(contract, path, another(schema, at(contract, path)))
    return contract


BASES = {"defaults": read(SMALL), "no default": every_field_changed()}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_changed_alone_changes_the_digest(path: Path, base: str) -> None:
    """Enumerated from the schema, so that a new field is asked for, too."""
    contract = BASES[base]
    values = [another(FIELDS[path], at(contract, path))]
    if at(contract, path) is not None and path != REQUIRED and {"type": "null"} in FIELDS[path].get("anyOf", []):
        values.append(None)
    for value in values:
        other = changed(contract, path, value)
        assert at(other, path) != at(contract, path)
        assert digest(other) != digest(contract)
        assert (parity_digest(other) == parity_digest(contract)) == (path in LEFT_OUT)


LEFT_OUT = {
    ("lane",), ("stack",), ("exec", "device"), ("exec", "allow_cpu_fallback"), ("exec", "seed"), ("model", "hf_repo"),
    ("model", "weight_shards"), ("model", "config_json"), ("model", "tokenizer_json"), ("data", "train_file"), ("exec", "resume_from"),
}  # fmt: skip


def test_what_parity_leaves_out_is_there_to_be_left_out() -> None:
    assert set(NOT_FOR_PARITY) == LEFT_OUT <= FIELDS.keys()


def test_a_resumed_run_is_the_run_that_it_goes_on_with() -> None:
    begun = BASES["no default"]
    resumed = changed(begun, ("exec", "resume_from"), "runs/checkpoint-500")
    assert digest(begun) != digest(resumed)
    assert run_digest(begun) == run_digest(resumed) == digest(changed(begun, ("exec", "resume_from"), None))
    assert run_digest(changed(begun, ("exec", "seed"), 5)) != run_digest(begun)


def test_no_two_changes_have_one_digest() -> None:
    digests = {digest(changed(BASES["defaults"], path, another(schema, at(BASES["defaults"], path)))) for path, schema in FIELDS.items()}
    assert len(digests) == len(FIELDS)


@given(one=contracts(), two=contracts())
def test_equal_digests_mean_equal_contracts(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = read(one), read(two)
    assert (digest(first) == digest(second)) == (first == second)


# ---- order and spelling do not count


@given(
    contract=contracts(),
    shards=DRAWN["model", "weight_shards"],
    modules=st.permutations(["q_proj", "k_proj", "v_proj", "o_proj"]),
)
def test_order_does_not_count_where_it_means_nothing(contract: dict[str, Any], shards: list[str], modules: list[str]) -> None:
    contract["model"]["weight_shards"] = shards
    contract.setdefault("adapter", {})["target_modules"] = modules
    expected = digest(read(contract)), parity_digest(read(contract))
    contract["model"]["weight_shards"] = random.Random(7).sample(shards, len(shards))
    contract["adapter"]["target_modules"] = modules[::-1]
    assert (digest(read(contract)), parity_digest(read(contract))) == expected


@given(contract=contracts())
def test_a_default_written_out_does_not_count(contract: dict[str, Any]) -> None:
    whole = read(contract)
    assert digest(read(whole.model_dump(mode="json"))) == digest(whole)


def test_alpha_32_is_alpha_32_0() -> None:
    assert len({digest(changed(BASES["defaults"], ("adapter", "alpha"), alpha)) for alpha in (32, 32.0)}) == 1


# ---- RFC 8785

NUMBERS = {
    "0000000000000000": "0", "8000000000000000": "0", "0000000000000001": "5e-324", "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308", "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992", "c340000000000000": "-9007199254740992", "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22", "44b52d02c7e14af6": "1e+23", "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000", "444b1ae4d6e2ef4f": "999999999999999900000", "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7", "3eb0c6f7a0b5ed8d": "0.000001", "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325", "41b3de4355555555": "333333333.3333333", "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343", "becbf647612f3696": "-0.0000033333333333333333", "43143ff3c1cb0959": "1424953923781206.2",
}  # fmt: skip


@pytest.mark.parametrize("bits", NUMBERS)
def test_numbers_of_the_rfc(bits: str) -> None:
    [number] = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number) == NUMBERS[bits]


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back(number: float) -> None:
    text = canonical_json(number)
    assert float(text) == number
    assert len(text) <= 25


def test_keys_are_in_the_order_of_utf_16() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert canonical_json(dict.fromkeys(keys)) == '{"\\r":null,"1":null,"\u0080":null,"ö":null,"€":null,"😀":null,"\ufb33":null}'


@pytest.mark.parametrize(
    ("number", "text"), [(2**53 - 1, "9007199254740991"), (2**53, '"9007199254740992"'), (-(2**53), '"-9007199254740992"')]
)
def test_an_integer_that_no_double_holds_is_a_string(number: int, text: str) -> None:
    assert canonical_json({"seed": number}) == f'{{"seed":{text}}}'
