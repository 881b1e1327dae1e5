"""A contract's file to start from: every field with what it means, what is allowed, and its value."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

from contract.run.presets import preset_text
from contract.run.reference import fields, sections
from contract.run.spec import FineTuneContract
from contract.run.strict_yaml import DATE, resolved

EXAMPLES = ("model.hf_repo=smollm2-135m", "data.train_file=train.jsonl")
"""For what has no default; as overrides that stand before the user's own."""

WIDTH = 120
# Plain scalars that need no thought; everything else is quoted.
PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./-]*")
# Beyond what JSON escapes: YAML's line breaks and what it does not let stand in a text (YAML 1.2.2, 5.1 and 5.4).
ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def starter(contract: FineTuneContract, *, preset: str | None = None) -> str:
    """YAML that reads back as `contract`.

    Args:
        preset: is named, with its comment, at the top; its values are the contract's already.
    """
    values = contract.model_dump(mode="json")
    lines = ["# A fine-tune contract: docs/contract.md. A field may be left out where it stands at its default."]
    lines += ["# finetune plan FILE says what would run, or why it may not. Relative paths are relative to the current folder."]
    if preset is not None:
        comment = [line for line in preset_text(preset).splitlines() if line.startswith("#")]
        lines += ["#", f"# Preset {preset}.", *comment]
    for section, model in sections():
        lines.append("")
        if section:
            lines += [*_comment(model.__doc__ or "", ""), f"{section}:"]
        indent = "  " if section else ""
        for field in fields(section, model):
            value = values[section][field.name] if section else values[field.name]
            default = "required" if field.required else f"default {scalar(field.default)}"
            lines += _comment(f"{field.meaning} ({field.allowed}; {default})", indent)
            lines.append(f"{indent}{field.name}: {scalar(value)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_long_words=False
    )


def scalar(value: Any) -> str:
    """A JSON value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if PLAIN.fullmatch(value) and isinstance(resolved(value), str) and not DATE.fullmatch(value) and not value.startswith(("...", "---")):
        return value
    return ESCAPED.sub(lambda sign: f"\\u{ord(sign.group()):04x}", json.dumps(value, ensure_ascii=False))
