"""`parity coverage`."""

from __future__ import annotations

from typing import Annotated

import typer

from contract.errors import MissingError


def coverage(
    write: Annotated[bool, typer.Option("--write", help="Records the matrix in parity/coverage.json.")] = False,
) -> None:
    """Prints the matrix of check x stack x question x device, each cell run or not applicable with the reason."""
    from parity import cells, session
    from parity.report import terminal

    found = session.coverage_of_all()
    terminal.matrix(found)
    if write:
        cells.write_coverage(found)
    elif found != cells.read_coverage():
        raise MissingError("the matrix differs from parity/coverage.json; record it: parity coverage --write")
