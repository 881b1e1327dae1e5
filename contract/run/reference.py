"""What the contract's models say of themselves: every field with its default, what is allowed, and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from contract.run.digest import canonical_json
from contract.run.layer import section_of
from contract.run.spec import ONE_LINE, FineTuneContract

BEGIN, END = "<!-- fields: generated -->", "<!-- end of fields -->"

WORDS = {2**31 - 1: "2^31 - 1", 2**63 - 1: "2^63 - 1"}


@dataclass(frozen=True, kw_only=True)
class FieldDoc:
    """One field. section: "" for the contract's own. default: as JSON has it; None too where `required`."""

    section: str
    name: str
    meaning: str
    allowed: str
    default: Any
    required: bool

    @property
    def path(self) -> str:
        """As a flag names it."""
        return f"{self.section}.{self.name}" if self.section else self.name


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """The contract itself under the name "", then its sections, in the models' order."""
    yield "", FineTuneContract
    for name in FineTuneContract.model_fields:
        section = section_of(FineTuneContract, name)
        if section is not None:
            yield name, section


def fields(section: str, model: type[BaseModel]) -> Iterator[FieldDoc]:
    """The fields of a section that are values, in the model's order."""
    schema = model.model_json_schema(mode="validation")["properties"]
    for name, field in model.model_fields.items():
        if section_of(model, name) is None:
            required = field.is_required()
            default = None if required else field.get_default(call_default_factory=True)
            yield FieldDoc(
                section=section,
                name=name,
                meaning=field.description or "",
                allowed=allowed(schema[name]),
                default=list(default) if isinstance(default, tuple) else default,
                required=required,
            )


def allowed(schema: dict[str, Any]) -> str:
    """In words, what a field's JSON Schema lets in."""
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "array":
        return f"list of {allowed(schema['items'])}"
    if kind == "object":
        [(pattern, inner)] = schema["patternProperties"].items()
        return f"mapping of names that match {pattern} to {allowed(inner)}"
    if kind == "string":
        one_line = schema.get("pattern") == ONE_LINE
        if "pattern" in schema and not one_line:
            return f"text that matches {schema['pattern']}"
        kind = "a line" if one_line else "text"
        return f"{kind} of {schema.get('minLength', 0):,} to {schema['maxLength']:,} characters" if "maxLength" in schema else kind
    return {"null": "null", "boolean": "true | false"}.get(kind) or _range(kind, schema)


def _range(kind: str, schema: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {WORDS.get(schema[key]) or canonical_json(schema[key])}" for key, sign in signs.items() if key in schema]
    return f"{kind} {', '.join(bounds)}" if bounds else kind


def reference() -> str:
    """Tables of all fields, in Markdown."""
    return "\n".join(_table(section, model) for section, model in sections())


def _table(section: str, model: type[BaseModel]) -> str:
    lines = [f"### {section or 'The contract itself'}", "", *(model.__doc__ or "").split("\n"), ""]
    lines += ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for field in fields(section, model):
        default = "required" if field.required else f"`{json.dumps(field.default)}`"
        cells = (f"`{field.path}`", default, field.allowed, field.meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def with_reference(page: str) -> str:
    """A page (docs/contract.md) whose part between BEGIN and END is `reference()`."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"
