"""Contract files, written, read, and what is refused in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.errors import ContractError, ContractErrors
from contract.run.source import read_contract
from contract.run.spec import FineTuneContract

SUFFIXES = (".yaml", ".yml", ".toml", ".json")


def written(folder: Path, text: str | bytes, *, suffix: str = ".yaml") -> Path:
    path = folder / f"run{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes, *, suffix: str = ".yaml", **more: Any) -> FineTuneContract:
    return read_contract(written(folder, text, suffix=suffix), **more)


def faults(folder: Path, text: str | bytes, *, suffix: str = ".yaml", **more: Any) -> list[str]:
    """What is refused, the folder's name left out."""
    with pytest.raises((ContractError, ContractErrors)) as caught:
        read(folder, text, suffix=suffix, **more)
    return str(caught.value).replace(f"{folder}/", "").splitlines()
