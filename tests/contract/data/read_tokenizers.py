"""Tokenizers for tests: SmolLM2's, the two small ones of golden/, and changed copies of these."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from contract.data.tokenizers import HfTokenizer
from contract.worker.files import cache_folder

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("smollm2", "metaspace", "across")


def folder(name: str) -> Path:
    """Where a tokenizer lies."""
    return cache_folder() / "models" / "smollm2-135m" if name == "smollm2" else GOLDEN / name


@cache
def tokenizer(name: str) -> HfTokenizer:
    """One of NAMES, read."""
    return HfTokenizer(folder(name) / "tokenizer.json")


def changed(name: str, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a tokenizer.json after a change to what it holds."""
    content = json.loads((folder(name) / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    path = target / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
