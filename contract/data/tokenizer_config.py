"""What lies beside a tokenizer.json: the names of special tokens, and the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import ContractError, brief
from contract.reading import bytes_of, json_file

MAX_TEMPLATE_BYTES = 2**20
_REMEDY = "correct it, or take the file that the model came with"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What was read.

    named: eos_token and the like -> the token's text. template: the chat template's source, None where there is none. place: its file.
    """

    named: Mapping[str, str]
    template: str | None
    place: str


def read_tokenizer_config(tokenizer_json: Path) -> TokenizerConfig:
    """tokenizer_config.json, special_tokens_map.json and chat_template.jinja beside a tokenizer.json, as transformers 5 joins them.

    chat_template.jinja goes before the configuration's own `chat_template`; of several named templates it's `default`.
    special_tokens_map.json counts only where the configuration has no `added_tokens_decoder`.

    Raises:
        ContractError: a file is there, and is not what it should be.
    """
    path = tokenizer_json.with_name("tokenizer_config.json")
    config = json_file(path, remedy=_REMEDY) if path.exists() else {}
    named = _named(config, path)
    older = tokenizer_json.with_name("special_tokens_map.json")
    if "added_tokens_decoder" not in config and older.exists():
        named |= _named(json_file(older, remedy=_REMEDY), older)
    jinja = tokenizer_json.with_name("chat_template.jinja")
    if jinja.exists():
        return TokenizerConfig(named=named, template=_text(jinja), place=str(jinja))
    template = _default(config.get("chat_template"), path)
    return TokenizerConfig(named=named, template=template, place=f"{path}: chat_template")


def _named(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    named = {}
    for name, value in config.items():
        if not name.endswith("_token") or isinstance(value, bool) or value is None:
            continue  # add_bos_token and the like are settings
        token = value.get("content") if isinstance(value, dict) else value
        if not isinstance(token, str):
            raise ContractError(f"{path}: {name}", got=brief(value), allowed="a token's text, or an object with it", remedy=_REMEDY)
        named[name] = token
    return named


def _default(value: Any, path: Path) -> str | None:
    place = f"{path}: chat_template"
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        templates = {str(entry.get("name")): entry.get("template") for entry in entries}
        if len(entries) != len(value) or len(templates) != len(value) or not isinstance(templates.get("default"), str):
            raise ContractError(place, got=brief(value), allowed="named templates, each once, one of them 'default'", remedy=_REMEDY)
        value = templates["default"]
    if value is not None and not isinstance(value, str):
        raise ContractError(place, got=brief(value), allowed="a template's text, or a list of named ones", remedy=_REMEDY)
    if value is not None and len(value.encode()) > MAX_TEMPLATE_BYTES:
        raise ContractError(place, got=f"{len(value.encode()):,} bytes", allowed=f"{MAX_TEMPLATE_BYTES:,} at most", remedy=_REMEDY)
    return value


def _text(path: Path) -> str:
    content = bytes_of(path, limit=MAX_TEMPLATE_BYTES, remedy=_REMEDY)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte {content[error.start]:#04x} at offset {error.start}, which is no UTF-8"
        raise ContractError(str(path), got=got, allowed="a template in UTF-8", remedy=_REMEDY) from None
    # As Python reads a text file, which is how transformers reads this one.
    return text.replace("\r\n", "\n").replace("\r", "\n")
