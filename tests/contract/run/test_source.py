"""Reading a contract: what goes over what, the same contract in every format, and faults with their places."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from contract.artifacts.record import Line
from contract.errors import ContractError, ContractErrors
from contract.run.digest import digest
from contract.run.presets import NAMES
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract
from tests.contract.run.contract_draws import block, contracts, flow, toml
from tests.contract.run.contract_files import faults, read, written

SMALL = {"model": {"hf_repo": "m"}, "data": {"train_file": "t.jsonl"}}
REQUIRED = ("model.hf_repo=m", "data.train_file=t.jsonl")


# ---- precedence


def test_defaults_under_preset_under_file_under_flags(tmp_path: Path) -> None:
    text = "model: {hf_repo: m}\ndata: {train_file: t.jsonl}\nexec: {seq_len: 77, batch_size: 9, epochs: 5}\n"
    contract = read(tmp_path, text, preset="smoke", overrides=["exec.batch_size=11", "exec.epochs=6", "exec.epochs=7"])
    assert contract.exec.grad_accum == 2  # smoke's
    assert contract.exec.seq_len == 77  # smoke has 64
    assert contract.exec.batch_size == 11
    assert contract.exec.epochs == 7
    assert contract.exec.learning_rate == 2e-4


def test_without_a_file_preset_and_flags_do() -> None:
    assert read_contract(None, preset="mobile_edge", overrides=REQUIRED).artifact.deployment_target == "mobile_edge"
    assert read_contract(None, overrides=REQUIRED) == FineTuneContract.model_validate(SMALL)


def test_lists_and_mappings_are_replaced(tmp_path: Path) -> None:
    text = "model: {hf_repo: m}\ndata: {train_file: t}\nadapter: {target_modules: [q_proj, k_proj], rank_pattern: {q_proj: 3, k_proj: 5}}\n"
    overrides = ["adapter.target_modules=[v_proj]", "adapter.rank_pattern={layers.3.o_proj: 8}"]
    contract = read(tmp_path, text, overrides=overrides)
    assert contract.adapter.target_modules == ("v_proj",)
    assert contract.adapter.rank_pattern == {"layers.3.o_proj": 8}


def test_a_section_in_a_flag_goes_over_the_file_field_by_field(tmp_path: Path) -> None:
    contract = read(tmp_path, "model: {hf_repo: m}\ndata: {train_file: t}\nadapter: {rank: 3, alpha: 7}\n", overrides=["adapter={rank: 5}"])
    assert (contract.adapter.rank, contract.adapter.alpha) == (5, 7.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "x"), ('"8"', "8"), ("no", "no"), ("a#b", "a#b"), ("'a #b'", "a #b"), ("a=b", "a=b"), (" padded ", "padded"), ("", None),
        ("null", None), (r"C:\x", r"C:\x"),
    ],
)  # fmt: skip
def test_a_flags_value_is_yaml(value: str, expected: str | None) -> None:
    assert read_contract(None, overrides=[*REQUIRED, f"exec.adapter_tag={value}"]).exec.adapter_tag == expected


@pytest.mark.parametrize("sign", ["\n", "\t", "\x1b", "\x7f", "\x00"])
def test_a_tag_is_one_line_as_the_artifacts_must_have_it(sign: str) -> None:
    """Else it would be refused when the adapter is written, after the run."""
    tag = f"a{sign}b"
    with pytest.raises(ContractError, match=r"exec\.adapter_tag"):
        read_contract(None, overrides=[*REQUIRED, f"exec.adapter_tag={json.dumps(tag)}"])
    with pytest.raises(ValidationError):
        TypeAdapter(Line).validate_python(tag)


def test_relative_paths_are_left_as_they_are(tmp_path: Path) -> None:
    contract = read(tmp_path, "model: {config_json: ../c.json}\ndata: {train_file: rows/t.jsonl}\n")
    assert (contract.model.config_json, contract.data.train_file) == ("../c.json", "rows/t.jsonl")


# ---- formats


@given(contract=contracts(), seed=st.integers(0, 2**32))
def test_the_same_contract_in_every_format_and_order(contract: dict[str, Any], seed: int) -> None:
    expected = FineTuneContract.model_validate(contract)
    shuffled = random.Random(seed)

    def mixed(value: Any) -> Any:
        return (
            dict(shuffled.sample([(key, mixed(inner)) for key, inner in value.items()], len(value))) if isinstance(value, dict) else value
        )

    with tempfile.TemporaryDirectory() as folder:
        for suffix, text in (
            (".yaml", block(mixed(contract))),
            (".yml", flow(mixed(contract))),
            (".toml", toml(mixed(contract))),
            (".json", json.dumps(mixed(contract))),
        ):
            path = written(Path(folder), text, suffix=suffix)
            got = read_contract(path)
            assert got == expected, suffix
            assert digest(got) == digest(expected)


def test_yaml_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "model: {hf_repo: no}\ndata: {train_file: 1_000, min_rating: 0x3}\nexec: {learning_rate: 2e-4, epochs: 010, seq_len: 0o100}\n"
    contract = read(tmp_path, text)
    assert (contract.model.hf_repo, contract.data.train_file, contract.data.min_rating) == ("no", "1_000", 3)
    assert (contract.exec.learning_rate, contract.exec.epochs, contract.exec.seq_len) == (2e-4, 10, 64)


@pytest.mark.parametrize("name", ["run", "run.txt", "run.yaml.bak", ".yaml"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("model: {}")
    with pytest.raises(ContractError, match=r"allowed: \.yaml, \.yml, \.toml, \.json") as caught:
        read_contract(tmp_path / name)
    assert "finetune init" in caught.value.remedy


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="got no such file"):
        read_contract(tmp_path / "run.yaml")
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ContractError, match="got a folder"):
        read_contract(tmp_path / "run.json")
    with pytest.raises(ContractError, match="got no such file"):
        read_contract(Path("a\0b.toml"))


# ---- faults


def test_every_fault_at_once_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    text = """lane: reseach
lan: production
model: {hf_repo: m}
adapter:
  rank: 0
  ranks: 4
  learning_rate: 2e-4
  alpha: .inf
  rank_pattern: {q_proj: x}
exec:
  seed: 2026-01-31
  epochs: 1
  epochs: 2
  batch_size: "4"
"""
    found = faults(tmp_path, text)
    assert found == [
        "run.yaml:1: lane: got 'reseach'; allowed: 'production' or 'research'; correct it, or leave it out for \"production\"",
        "run.yaml:2: lan: got an unknown field; allowed: contract_version, lane, stack, graph, objective, model, data, adapter, quant, "
        "exec, artifact; did you mean lane?",
        "run.yaml:5: adapter.rank: got 0; allowed: greater than or equal to 1; correct it, or leave it out for 16",
        "run.yaml:6: adapter.ranks: got an unknown field; allowed: method, rank, alpha, dropout, rslora, targets, target_modules, "
        "rank_pattern, alpha_pattern; did you mean adapter.rank?",
        "run.yaml:7: adapter.learning_rate: got an unknown field; allowed: method, rank, alpha, dropout, rslora, targets, target_modules, "
        "rank_pattern, alpha_pattern; did you mean exec.learning_rate?",
        "run.yaml:8: adapter.alpha: got inf; allowed: a finite number; correct it",
        "run.yaml:9: adapter.rank_pattern.q_proj: got 'x'; allowed: an integer; correct it",
        "run.yaml:11: exec.seed: got the date '2026-01-31'; allowed: text, numbers, true, false, null; put it in quotes if it is a text",
        "run.yaml:13: exec.epochs: got 'epochs' twice, first in line 12; allowed: each key once; remove one",
        "run.yaml:14: exec.batch_size: got '4'; allowed: an integer; correct it, or leave it out for 4",
        "run.yaml: data.train_file: got nothing; allowed: a value; the field is required; give it, or --set data.train_file=VALUE",
    ]


def test_json_faults_have_lines_too(tmp_path: Path) -> None:
    text = '{"model": {"weight_shards": ["a",\n 5]},\n "data": {"train_file": "t"},\n\n "quant": {"base":\n "nf5"}, "q,{[:\\"u": 1}'
    assert sorted(fault.split(";")[0] for fault in faults(tmp_path, text, suffix=".json")) == [
        "run.json:2: model.weight_shards.1: got 5",
        "run.json:6: 'q,{[:\"u': got an unknown field",
        "run.json:6: quant.base: got 'nf5'",
    ]


def test_a_fault_names_the_layer_that_it_stands_in(tmp_path: Path) -> None:
    text = "model: {hf_repo: m}\ndata: {train_file: t}\nexec: {epochs: 0}\n"
    found = faults(tmp_path, text, preset="cpu", overrides=["adapter.rank=0", "exec.seq_len=[1]"])
    assert [fault.split(": got")[0] for fault in found] == ["run.yaml:3: exec.epochs", "--set: adapter.rank", "--set: exec.seq_len"]


def test_a_flag_over_a_faulty_value_puts_it_right(tmp_path: Path) -> None:
    text = "model: {hf_repo: m}\ndata: {train_file: t}\nexec: {epochs: 0}\n"
    assert read(tmp_path, text, overrides=["exec.epochs=3"]).exec.epochs == 3


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert faults(tmp_path, "# nothing\n") == [
        "run.yaml: model: got nothing; allowed: a mapping of hf_repo, weight_shards, config_json, tokenizer_json; give it, or --set "
        "model.hf_repo=VALUE",
        "run.yaml: data.train_file: got nothing; allowed: a value; the field is required; give it, or --set data.train_file=VALUE",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("exec.seed", "--set: got 'exec.seed'; allowed: KEY=VALUE"),
        ("=3", "allowed: KEY=VALUE"),
        ("adapter.rnk=3", "--set: adapter.rnk: got an unknown field; .* did you mean adapter.rank?"),
        ("exec.rank=3", "did you mean adapter.rank?"),
        ("quant.batch_size=3", "did you mean exec.batch_size?"),  # and not quant.block_size, which is near
        ("zzz=3", "--set: zzz: got an unknown field; .*; remove it"),
        ("a.b.c=3", "--set: a: got an unknown field"),
        ("adapter.rank_pattern.q_proj=3", "allowed: adapter.rank_pattern, which has no fields of its own; give the field's whole value"),
        ("adapter=5", "--set: adapter: got 5; allowed: a mapping of method, rank"),
        ("adapter.rank=", "--set: adapter.rank: got None; allowed: an integer"),
        ("adapter.rank=[3", "--set: adapter.rank: got text that is no YAML .*; put quotes around a text"),
        ("data.system_prompt=You are: kind", "--set: data.system_prompt: got a mapping or list over lines"),
        ("data.system_prompt=be kind # always", "got '# always' after the value; .* put quotes"),
        ("exec.adapter_tag=*x", r"got an alias \(\*...\)"),
        ("exec.seed=2026-01-31", "--set: exec.seed: got the date"),
        ("exec.learning_rate=.nan", "--set: exec.learning_rate: got nan; allowed: a finite number"),
        ("exec.adapter_tag=\ud800", "--set: exec.adapter_tag: got text that is no YAML"),
        ("a." * 5000 + "a=1", "values nested too deep"),
        ("exec.seed=" + "[" * 5000, "values nested too deep"),
    ],
)
def test_hostile_flags(override: str, message: str) -> None:
    with pytest.raises((ContractError, ContractErrors), match=message):
        read_contract(None, overrides=[*REQUIRED, override])


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ContractError, match=f"--preset: got 'gpu'; allowed: {', '.join(NAMES)}"):
        read_contract(None, preset="gpu", overrides=REQUIRED)
    with pytest.raises(ContractError, match="--preset"):
        read_contract(None, preset="../presets/cpu", overrides=REQUIRED)
