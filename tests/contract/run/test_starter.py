"""The starter file: it reads back as what it was written from, and says everything that the models say."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.run.presets import NAMES
from contract.run.schema import json_schema
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract
from contract.run.starter import EXAMPLES, WIDTH, scalar, starter
from contract.run.strict_yaml import parse
from tests.contract.run.contract_draws import FIELDS, contracts


@pytest.mark.parametrize("preset", [None, *NAMES])
def test_reads_back_and_fits_the_schema(tmp_path: Path, preset: str | None) -> None:
    contract = read_contract(None, preset=preset, overrides=EXAMPLES)
    text = starter(contract, preset=preset)
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_contract(path) == contract
    value, _, faults = parse(text, "run.yaml")
    assert faults == {}
    jsonschema.Draft202012Validator(json.loads(json_schema())).validate(value)
    assert preset is None or f"# Preset {preset}.\n# " in text


@given(contract=contracts())
def test_any_contract_reads_back(contract: dict[str, Any]) -> None:
    whole = FineTuneContract.model_validate(contract)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(starter(whole), encoding="utf-8")
        assert read_contract(path) == whole


def test_every_field_stands_there_with_its_comment() -> None:
    text = starter(read_contract(None, overrides=EXAMPLES))
    value, _, _ = parse(text, "x")
    uncommented = " ".join(text.replace("#", " ").split())
    for path, schema in FIELDS.items():
        section = value
        for name in path:
            section = section[name]
        assert schema["description"] in uncommented, path
    assert sum(line.rstrip().endswith(":") for line in text.splitlines()) == 6
    assert all(len(line) <= WIDTH for line in text.splitlines())


@given(value=st.text())
def test_any_text_is_one_line_of_yaml(value: str) -> None:
    line = f"a: {scalar(value)}\n"
    assert parse(line, "x") == ({"a": value}, {(): 1, ("a",): 1}, {})


@pytest.mark.parametrize(
    "value",
    ["no", "null", "1e5", "0x1", "2026-01-31", "", " a", "a ", "a: b", "#", "---", "...", "-", "*a", "<<", "\x85", "\ufeff", "\x7f"],
)
def test_texts_that_look_like_something_else(value: str) -> None:
    assert parse(f"a: {scalar(value)}\nb: [{scalar(value)}]\n", "x")[0] == {"a": value, "b": [value]}
