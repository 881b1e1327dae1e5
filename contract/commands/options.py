"""The arguments of every subcommand that takes a contract: spelt once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ContractFile = Annotated[Path | None, typer.Argument(metavar="CONTRACT", help="The run: YAML, TOML or JSON; else preset and flags alone.")]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="smoke, cpu, gpu_16g, gpu_80g, research, mobile_edge; the file goes over it.")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A field, as adapter.rank=8; repeatable.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="As --set data.skip_bad_rows=true.")]
