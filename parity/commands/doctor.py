"""`parity doctor`."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Says what is installed, which devices and compilers work, which known defects apply here, and what to do."""
    from parity import doctor as examination
    from parity.report import terminal

    raise typer.Exit(examination.show(examination.examine(), terminal.console()))
