"""`parity explain`."""

from __future__ import annotations

from typing import Annotated

import typer


def explain(check: Annotated[str, typer.Argument(help="A check's id; without one all are listed.")] = "") -> None:
    """Says what a check compares, how far off a right answer may be and why, what usually breaks it, and how to ask it alone."""
    from parity import explanation
    from parity.checks import registry
    from parity.report import explained, terminal

    with terminal.despite_a_closed_pipe():
        if check:
            explained.show(explanation.explain(check), terminal.console())
        else:
            explained.listed(registry.CHECKS, terminal.console())
