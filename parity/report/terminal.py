"""The terminal: its width, and a progress bar that says what is done now and how long it will take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from parity.options import Progress as Callbacks

_WIDTH_OF_A_FILE = 160


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the process with 1, which here means a divergence."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output; as wide as its lines where it is no terminal, so that a log is not wrapped."""
    found = _Console()
    return found if found.is_terminal else _Console(width=_WIDTH_OF_A_FILE)


@contextmanager
def despite_a_closed_pipe() -> Iterator[None]:
    """What nobody reads any more (`| head`) changes no verdict."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress() -> Iterator[Callbacks]:
    """A bar on standard error, gone when the run ends; nothing where that is no terminal."""
    err = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("reading", total=None)
        yield Callbacks(
            doing=lambda text: bar.update(task, description=text),
            total=lambda examples: bar.update(task, total=examples),
            step=lambda: bar.advance(task),
        )


def matrix(cells: Mapping[str, str]) -> None:
    """The coverage matrix, a line a cell."""
    table = Table("check", "question", "dtype", "stacks", "state", box=None, pad_edge=False)
    for key, state in cells.items():
        table.add_row(*key.split(" | "), state)
    console().print(table)
