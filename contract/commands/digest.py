"""`finetune digest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from contract.commands.options import ContractFile, Overrides, Preset, SkipBadRows

if TYPE_CHECKING:
    from contract.run.spec import FineTuneContract


def digest(
    contract: ContractFile = None,
    preset: Preset = None,
    overrides: Overrides = None,
    inputs: Annotated[bool, typer.Option("--inputs", help="SHA-256 of the model's and the data's files, too.")] = False,
    skip_bad_rows: SkipBadRows = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Prints what identifies a run: its digest, its parity digest, the hashes of its inputs."""
    from json import dumps

    from contract.errors import printable
    from contract.run.digest import digest, parity_digest
    from contract.run.source import read_contract, settings

    read = read_contract(contract, preset=preset, overrides=settings(overrides, skip_bad_rows=skip_bad_rows))
    shown: dict[str, Any] = {"digest": digest(read), "parity_digest": parity_digest(read)}
    if inputs:
        shown["inputs"] = _inputs(read)
    if json:
        typer.echo(dumps(shown, indent=2))
        return
    lines = {"digest": shown["digest"], "parity digest": shown["parity_digest"]} | shown.get("inputs", {})
    width = max(map(len, lines))
    for name, value in lines.items():
        typer.echo(f"{printable(name):{width}}  {value}")


def _inputs(contract: FineTuneContract) -> dict[str, str]:
    from contract.commands.progress import progress_bars
    from contract.errors import printable
    from contract.run.content import inputs_of, sha256_of_inputs

    found = inputs_of(contract)
    with progress_bars() as progress:
        hashes = sha256_of_inputs(found.files, progress=progress)
    for fault in found.faults:
        typer.echo(f"finetune: not hashed: {printable(str(fault))}", err=True)
    return hashes
