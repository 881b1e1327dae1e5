"""JSON answers."""

from __future__ import annotations

import json

import pytest

from parity.scorecard.validators import json_document
from parity.scorecard.validators.judged import BrokenValidator
from parity.scorecard.validators.spec import JsonValidator

PERSON = JsonValidator(
    kind="json",
    document_schema={
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "kind": {"enum": ["swordfish"]}},
        "required": ["name"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize("answer", ['{"name": "Ada"}', ' {"age": 3, "name": ""}\n', '{"name": "\\ud800", "kind": "swordfish"}'])
def test_a_right_answer_passes(answer: str) -> None:
    judged = json_document.judge(PERSON, answer)
    assert (judged.syntax, judged.semantics, judged.errors) == (True, True, ())


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        ("{}", ["$: 'name' is a required property"]),
        ('{"name": 3, "age": -1}', ["$.age: -1 is less than the minimum of 0", "$.name: 3 is not of type 'string'"]),
        ('{"name": "Ada", "kind": "x"}', ["$.kind: not a value that is allowed"]),
        ("null", ["$: None is not of type 'object'"]),
    ],
)
def test_a_wrong_answer_has_syntax_alone(answer: str, errors: list[str]) -> None:
    judged = json_document.judge(PERSON, answer)
    assert (judged.syntax, judged.semantics, list(judged.errors)) == (True, False, errors)


@pytest.mark.parametrize(
    "answer",
    [
        "", "Ada", "{'name': 'Ada'}", '{"name": "Ada",}', '{"age": NaN}', '{"age": -Infinity}', '{"age": 1e999}',
        '{"name": 1, "name": "Ada"}',
        '{"name": "Ada"} {}', "[" * 60_000, '{"a":' * 60_000, "9" * 5000, '{"name": "\x00"}',
    ],
)  # fmt: skip
def test_what_is_no_json_has_no_syntax(answer: str) -> None:
    judged = json_document.judge(PERSON, answer)
    assert (judged.syntax, judged.semantics) == (False, False)
    assert len(judged.errors) == 1


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, "'objekt' is not valid"),
        ({"$ref": "https://schema.invalid/x.json"}, "refers to 'https://schema.invalid/x.json'"),
        ({"$ref": "file:///etc/passwd"}, "refers to 'file:///etc/passwd'"),
    ],
)
def test_a_wrong_schema_is_no_answers_fault(schema: dict[str, object], words: str) -> None:
    with pytest.raises(BrokenValidator, match=words):
        json_document.judge(JsonValidator(kind="json", document_schema=schema), "{}")


def test_what_is_written_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "\n"], "b": {}}
    assert json_document.parse(json.dumps(value)) == value
