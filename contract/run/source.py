"""Reading a contract: defaults, under a preset, under a file, under flags.

A relative path in a contract is relative to the current folder, in a file as in a flag.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contract.errors import ContractError, ContractErrors, brief
from contract.reading import bytes_of, json_of
from contract.run.faults import faults_of
from contract.run.json_lines import json_lines
from contract.run.layer import MAX_DEPTH, MAX_FAULTS, Faults, Layer, Location, laid_over, layer_of, section_of, spot
from contract.run.presets import preset_layer
from contract.run.spec import FineTuneContract
from contract.run.strict_yaml import parse

MAX_BYTES = 2**20
"""Of a contract's file."""

REMEDY = "give a contract's file; finetune init writes one"

# tomllib takes quadratic time over a key of many parts: a megabyte of them would be a hang.
_KEY_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*"""
_LONG_KEY = re.compile(rf"(?:^[ \t]*\[{{0,2}}|[{{,])[ \t]*(?:{_KEY_PART}\.[ \t]*){{{MAX_DEPTH}}}", re.MULTILINE)

Parsed = tuple[Any, dict[Location, int], Faults]


def read_contract(path: Path | None, *, preset: str | None = None, overrides: Sequence[str] = ()) -> FineTuneContract:
    """A contract from a preset, a file and flags; each goes over what stands before it, field by field.

    Args:
        path: YAML (.yaml, .yml), TOML (.toml) or JSON (.json); None: preset and overrides alone.
        preset: one of contract.run.presets.NAMES.
        overrides: `KEY=VALUE`: a dotted field (`adapter.rank`), and YAML on one line (`8`, `[q_proj, v_proj]`); of two for one field
            the later wins. Lists and mappings are replaced, never merged.

    Raises:
        ContractError: one thing is wrong: it names file, line (YAML and JSON) and field.
        ContractErrors: several are.
    """
    layers = [preset_layer(preset)] if preset is not None else []
    layers += [file_layer(path)] if path is not None else []
    layers += [override_layer(text) for text in overrides]
    values, origins = laid_over(layers, FineTuneContract)
    faults = {location: fault for layer in layers for location, fault in layer.faults.items()}
    contract = None
    try:
        contract = FineTuneContract.model_validate(_with_sections(values))
    except ValidationError as error:
        for location, fault in faults_of(error, FineTuneContract, origins, str(path) if path else "the contract"):
            if not any(location[:n] in faults for n in range(len(location) + 1)):
                faults[location] = fault
    if contract is None or faults:
        lines = {location: line for layer in layers for location, line in layer.lines.items()}
        order = sorted(faults, key=lambda location: lines.get(location, MAX_BYTES))
        found = [faults[location] for location in order][:MAX_FAULTS]
        raise found[0] if len(found) == 1 else ContractErrors(found)
    return contract


def _with_sections(values: dict[str, Any]) -> dict[str, Any]:
    """A section that is left out but has required fields stands there empty, so that the fault names the field."""
    for name in FineTuneContract.model_fields:
        section = section_of(FineTuneContract, name)
        if section is not None and any(inner.is_required() for inner in section.model_fields.values()):
            values.setdefault(name, {})
    return values


def file_layer(path: Path) -> Layer:
    """The fields of a file.

    Raises:
        ContractError: no such file, another suffix, over a megabyte, not UTF-8, or not the format that its suffix names.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ContractError(brief(str(path))[1:-1], got=f"the suffix {brief(path.suffix)}", allowed=", ".join(_READERS), remedy=REMEDY)
    content = bytes_of(path, limit=MAX_BYTES, remedy=REMEDY)
    source = str(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte {content[error.start]:#04x} at offset {error.start}, which is no UTF-8"
        raise ContractError(source, got=got, allowed="UTF-8", remedy="save it as UTF-8") from None
    if text.startswith("\ufeff"):
        raise ContractError(source, got="a byte order mark", allowed="UTF-8 without one", remedy="save it without")
    return layer_of(source, *read(text, source))


def settings(overrides: Sequence[str] | None, *, skip_bad_rows: bool) -> tuple[str, ...]:
    """The KEY=VALUE of a command's flags."""
    return (*(overrides or ()), *(["data.skip_bad_rows=true"] if skip_bad_rows else []))


def override_layer(text: str) -> Layer:
    """The field of a flag.

    Raises:
        ContractError: it is no KEY=VALUE, or its key leads below a field.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ContractError("--set", got=brief(text), allowed="KEY=VALUE, such as adapter.rank=8", remedy="write it so")
    location = tuple(key.split("."))
    section: Any = FineTuneContract
    for depth, name in enumerate(location[:-1], start=1):
        if name in section.model_fields and section_of(section, name) is None:
            field = ".".join(location[:depth])
            remedy = "give the field's whole value"
            raise ContractError("--set", got=brief(key), allowed=f"{field}, which has no fields of its own", remedy=remedy)
        section = section_of(section, name)
        if section is None:
            break
    found, _, faults = parse(value, spot("--set", location), block=False)
    for name in reversed(location):
        found = {name: found}
    return layer_of("--set", found, {}, {(*location, *inner): fault for inner, fault in faults.items()})


def _yaml(text: str, source: str) -> Parsed:
    return parse(text, source)


def _json(text: str, source: str) -> Parsed:
    value = json_of(text.encode(), source, remedy="correct it")
    return value, json_lines(text), {}


def _toml(text: str, source: str) -> Parsed:
    if long := _LONG_KEY.search(text):
        line = text.count("\n", 0, long.end()) + 1
        raise ContractError(f"{source}:{line}", got="values nested too deep", allowed=f"{MAX_DEPTH} levels", remedy="correct it")
    try:
        return tomllib.loads(text), {}, {}
    except RecursionError:
        raise ContractError(source, got="values nested too deep", allowed=f"{MAX_DEPTH} levels", remedy="correct it") from None
    except tomllib.TOMLDecodeError as error:
        raise ContractError(source, got=f"text that is no TOML ({error})", allowed="TOML 1.0", remedy="correct it") from None
    except ValueError:  # Python's own: it converts 4,300 digits and no more
        raise ContractError(source, got="a number of thousands of digits", allowed="TOML 1.0", remedy="correct it") from None


_READERS: dict[str, Callable[[str, str], Parsed]] = {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": _json}
