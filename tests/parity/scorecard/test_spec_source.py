"""A spec: what is refused, in which words, and what its digests are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from contract.errors import ContractError, ContractErrors
from parity.scorecard.spec import Spec, json_schema
from parity.scorecard.spec_source import Scorecard, read_scorecard, spec_of
from tests.parity.scorecard.scorecard_cases import scorecard, spec_values

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "docs" / "scorecard.schema.json"
WRITE = (
    'python -c "from pathlib import Path; from parity.scorecard.spec import json_schema; '
    "Path('docs/scorecard.schema.json').write_text(json_schema())\""
)


def test_the_published_schema_is_the_model() -> None:
    assert SCHEMA.read_text() == json_schema(), f"run: {WRITE}"


@pytest.mark.parametrize("changed", [{}, {"comparison": None}, {"conditions": [
    {"id": "a", "kind": "local", "backend": "qlora", "stack": "torch_qlora", "model": "m", "adapter": "a-{seed}"},
    {"id": "b", "kind": "http_generate", "backend": "lora", "server_url": "http://127.0.0.1:8000/v1", "model": "m"},
], "comparison": {"baseline": "a", "candidate": "b"}}])  # fmt: skip
def test_a_good_spec_is_good_by_both(changed: dict[str, Any]) -> None:
    values = spec_values(**changed)
    jsonschema.validate(values, json.loads(SCHEMA.read_text()))
    assert spec_of(json.dumps(values), "s.yaml") == Spec.model_validate(values)


def changed_at(*path: str | int, value: Any) -> dict[str, Any]:
    """A good spec with one value set."""
    values: Any = spec_values(
        conditions=[
            {"id": "c", "kind": "fixture_file", "backend": "b", "fixture_dir": "d"},
            {"id": "h", "kind": "http_generate", "backend": "b", "server_url": "http://x/v1", "model": "m"},
        ],
        budgets={"max_new_tokens": 5},
    )
    at = values
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return dict(values)


REFUSED = {
    ("more",): (1, "more"), ("budgets", "more"): (1, "budgets.more"), ("conditions", 0, "more"): (1, "conditions.0.more"),
    ("conditions", 1, "fixture_dir"): ("d", "conditions.1.fixture_dir"), ("tasks", 0, "more"): (1, "tasks.0.more"),
    ("conditions", 0, "kind"): ("magic", "conditions.0"), ("conditions", 1, "id"): ("c", "conditions"),
    ("conditions", 1, "temperature"): ("0", "conditions.1.temperature"), ("schema_version",): (2, "schema_version"),
    ("seeds",): ([1, 1], "seeds"), ("max_retries",): (True, "max_retries"), ("budgets", "request_seconds"): (0, "budgets.request_seconds"),
    ("tasks", 0, "validators"): ([{"kind": "sql", "reference": "SELECT 2"}], "tasks.0.validators.0.database"),
    ("tasks", 0, "id"): ("t1", "tasks"),
    ("tasks", 0, "language"): ("cobol", "tasks.0.language"), ("comparison",): ({"baseline": "c", "candidate": "x"}, "x"),
}  # fmt: skip


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: ".".join(map(str, path)))
def test_what_is_refused_is_named_with_its_line(path: tuple[str | int, ...]) -> None:
    value, named = REFUSED[path]
    text = json.dumps(changed_at(*path, value=value), indent=1)
    with pytest.raises(ContractError) as caught:
        spec_of(text, "s.yaml")
    assert named in str(caught.value)
    assert str(caught.value).startswith("s.yaml")


def test_a_task_that_nothing_judges_is_refused() -> None:
    values = spec_values()
    del values["tasks"][0]["expected_contains"], values["tasks"][0]["semantic_expected_contains"]
    with pytest.raises(ContractError, match=r"tasks\.0: .*can't fail"):
        spec_of(json.dumps(values), "s.yaml")


def test_all_faults_are_told_at_once_and_in_lines() -> None:
    text = "schema_version: 1\nmore: 1\nseeds: [a]\n"
    with pytest.raises(ContractErrors) as caught:
        spec_of(text, "s.yaml")
    told = str(caught.value).splitlines()
    assert [line.split(": got")[0] for line in told] == [
        "s.yaml: prompt_pack_version", "s.yaml:3: seeds.0", "s.yaml: conditions", "s.yaml:2: more",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"), [({"tasks": []}, "neither"), ({"suite": {"name": "text_to_sql", "tasks": 3}}, "tasks and a suite")]
)
def test_tasks_or_a_suite(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(spec_values(**changed)))
    with pytest.raises(ContractError, match=words):
        read_scorecard(tmp_path / "s.yaml")


WRONG_SUITES = {
    "poems": {"name": "poems", "tasks": 3},
    "99,999": {"name": "text_to_sql", "tasks": 99_999},
    "suite.sha256": {"name": "text_to_sql", "tasks": 3, "sha256": "0" * 64},
}


@pytest.mark.parametrize("words", WRONG_SUITES)
def test_a_suite_that_is_not_what_the_spec_says(tmp_path: Path, words: str) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(spec_values(tasks=[], suite=WRONG_SUITES[words])))
    with pytest.raises(ContractError, match=words):
        read_scorecard(tmp_path / "s.yaml")


def digests(card: Scorecard) -> tuple[str, str, str]:
    return card.suite_sha256, card.protocol_sha256, card.spec_sha256


def test_digests_are_of_what_they_name(tmp_path: Path) -> None:
    suite, protocol, spec = digests(scorecard(tmp_path))
    tasks = spec_values()["tasks"]
    assert digests(scorecard(tmp_path / "elsewhere", budgets={"total_seconds": 9.0, "infra_retries": 7})) == (suite, protocol, spec)
    other = [condition | {"backend": "lora"} for condition in spec_values()["conditions"]]
    assert digests(scorecard(tmp_path, conditions=other))[:2] == (suite, protocol)
    assert digests(scorecard(tmp_path, conditions=other))[2] != spec
    assert digests(scorecard(tmp_path, seeds=[1]))[:2] == (suite, protocol)
    assert digests(scorecard(tmp_path, seeds=[1]))[2] != spec
    for changed in ({"max_retries": 0}, {"system": "Be brief."}, {"budgets": {"max_new_tokens": 7}}):
        found = digests(scorecard(tmp_path, **changed))
        assert found[0] == suite
        assert protocol not in found
        assert spec not in found
    found = digests(scorecard(tmp_path, tasks=[tasks[0] | {"prompt": "Say it."}, *tasks[1:]]))
    assert not {suite, protocol, spec} & set(found)
