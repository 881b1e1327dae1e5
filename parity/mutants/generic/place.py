"""A change of one place in a module, and the text that finds the place again.

Columns of `ast` count UTF-8 bytes, so sources are cut as bytes.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One expression of a module, and the source that takes its place."""

    node: ast.expr
    source: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """A mutant of one module.

    operator: the kind of change (parity/mutants/generic/operators.py).
    line:     the first line of what changes.
    before, after: the expression, and what takes its place.
    find, replace: the whole lines that hold it, and as many around them as it takes to occur once in the module.
    """

    module: str
    operator: str
    what: str
    line: int
    before: str
    after: str
    find: str
    replace: str

    @property
    def digest(self) -> str:
        """Names the change, whatever stands around it."""
        return hashlib.sha256("\0".join((self.module, self.operator, self.find, self.replace)).encode()).hexdigest()

    @property
    def stack(self) -> str:
        """The stack that the module is of."""
        return self.module.split(".")[1]

    @property
    def name(self) -> str:
        """Names the mutant: `stacks.torch_qlora.norm` is `torch_qlora.norm`."""
        return f"{self.module.partition('.')[2]}:{self.operator}:{self.digest[:8]}"


def place(module: str, source: str, operator: str, change: Change) -> Place | None:
    """The mutant that a change makes; None where it changes nothing, does not compile, or can't be found by text."""
    node, lines = change.node, source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    before = b"".join(lines[first : last + 1])[len(head) :]
    before = before[: len(before) - len(tail)]
    changed = [*lines[:first], head + change.source.encode() + tail, *lines[last + 1 :]]
    if not _differs(b"".join(lines), b"".join(changed)):
        return None
    find = _unique(lines, first, last)
    if find is None:
        return None
    start, stop = find
    return Place(
        module=module, operator=operator, what=change.what, line=node.lineno, before=" ".join(before.decode().split()), after=change.source,
        find=b"".join(lines[start:stop]).decode(), replace=b"".join(changed[start : stop - (last - first)]).decode(),
    )  # fmt: skip


def _unique(lines: list[bytes], first: int, last: int) -> tuple[int, int] | None:
    """The fewest whole lines around a place whose text occurs once."""
    whole = b"".join(lines)
    start, stop = first, last + 1
    while whole.count(b"".join(lines[start:stop])) != 1:
        if start == 0 and stop == len(lines):
            return None
        start, stop = (start - 1, stop) if start > 0 and ((first - start) <= (stop - 1 - last) or stop == len(lines)) else (start, stop + 1)
    return start, stop


def _differs(before: bytes, after: bytes) -> bool:
    try:
        return ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))
    except SyntaxError:
        return False
