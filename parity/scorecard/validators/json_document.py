"""JSON answers: RFC 8259, then a JSON Schema of draft 2020-12 that refers to nothing outside itself."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import jsonschema
import referencing
import referencing.exceptions

from parity.scorecard.validators.judged import BrokenValidator, Judged
from parity.scorecard.validators.spec import JsonValidator

MAX_ERRORS = 8
TELLING = frozenset({"const", "enum", "pattern"})
"""Keywords whose messages would say what is expected."""


def judge(validator: JsonValidator, answer: str) -> Judged:
    """Syntax: it parses. Semantics: it satisfies the schema.

    Raises:
        BrokenValidator: the schema is none, or refers to another document.
    """
    schema = validator.document_schema
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BrokenValidator(f"a json validator's document_schema: {error.message} (at {error.json_path}); mend it") from error
    try:
        document = parse(answer)
    except RecursionError:
        return Judged.failed("it is nested too deeply", syntax=False)
    except ValueError as error:
        return Judged.failed(f"no JSON: {error}", syntax=False)
    checker = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())  # one that fetches nothing
    try:
        errors = sorted(checker.iter_errors(document), key=lambda one: (one.json_path, str(one.validator)))
    except referencing.exceptions.Unresolvable as error:
        raise BrokenValidator(f"a json validator's document_schema refers to {error.ref!r}; allowed: itself; put that in") from error
    return Judged.failed(*map(_told, errors[:MAX_ERRORS])) if errors else Judged.passed()


def parse(text: str) -> Any:
    """JSON, strictly: no NaN, no infinity (spelled, or beyond float64), no key twice.

    Raises:
        ValueError: it isn't.
        RecursionError: nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)


def _told(error: jsonschema.ValidationError) -> str:
    if error.validator in TELLING:
        return f"{error.json_path}: not a value that is allowed"
    return f"{error.json_path}: {error.message}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits} is beyond float64")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
