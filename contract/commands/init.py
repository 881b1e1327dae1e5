"""`finetune init`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from contract.commands.options import Overrides, Preset


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write (.yaml, .yml).")] = Path("contract.yaml"),
    preset: Preset = None,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Writes a contract to start from: every field, commented."""
    from contract.errors import ContractError
    from contract.run.source import read_contract
    from contract.run.starter import EXAMPLES, starter
    from contract.worker.files import replacing

    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ContractError(str(path), got=f"the suffix {path.suffix!r}", allowed=".yaml, .yml", remedy="name it so; the starter is YAML")
    content = starter(read_contract(None, preset=preset, overrides=(*EXAMPLES, *(overrides or ()))), preset=preset)
    if path.is_dir() or (os.path.lexists(path) and not force):
        got, remedy = ("a folder", "give a file's name") if path.is_dir() else ("a file that is there", "give another name, or --force")
        raise ContractError(str(path), got=got, allowed="a new file", remedy=remedy)
    with replacing(path) as file:
        file.write(content.encode())
    typer.echo(f"{path} is written; see to model.hf_repo and data.train_file in it, then: finetune plan {path}")
