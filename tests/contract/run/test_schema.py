"""The contract's JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from pydantic import ValidationError

from contract.run.schema import json_schema
from contract.run.spec import FineTuneContract
from tests.contract.run.contract_draws import FIELDS, contracts

FILE = Path(__file__).parents[3] / "docs" / "contract.schema.json"
AGAIN = (
    'python -c "from pathlib import Path; from contract.run.schema import json_schema; '
    "Path('docs/contract.schema.json').write_text(json_schema(), encoding='utf-8')\""
)
VALIDATOR = jsonschema.Draft202012Validator(json.loads(json_schema()))


def test_the_schema_file_is_the_exported_one() -> None:
    assert FILE.read_text(encoding="utf-8") == json_schema(), f"write it anew: {AGAIN}"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json_schema()))


@given(contract=contracts())
def test_schema_and_models_let_in_the_same(contract: dict[str, Any]) -> None:
    VALIDATOR.validate(contract)
    FineTuneContract.model_validate(contract)


@pytest.mark.parametrize("path", sorted(FIELDS), ids=".".join)
def test_schema_and_models_refuse_the_same(path: tuple[str, ...]) -> None:
    """A mapping of mappings is wrong in every field."""
    contract: dict[str, Any] = {"model": {}, "data": {"train_file": "t"}}
    section = contract
    for name in path[:-1]:
        section = section.setdefault(name, {})
    section[path[-1]] = {"a b": {"c": 1}}
    assert not VALIDATOR.is_valid(contract)
    with pytest.raises(ValidationError):
        FineTuneContract.model_validate(contract)


@pytest.mark.parametrize("path", sorted({path[:-1] for path in FIELDS}), ids=str)
def test_schema_and_models_refuse_an_unknown_field(path: tuple[str, ...]) -> None:
    contract: dict[str, Any] = {"model": {}, "data": {"train_file": "t"}}
    section = contract
    for name in path:
        section = section.setdefault(name, {})
    section["colour"] = "red"
    assert not VALIDATOR.is_valid(contract)
    with pytest.raises(ValidationError):
        FineTuneContract.model_validate(contract)
