"""What a validator says of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from contract.errors import UserError

MAX_WORDS = 500
"""Characters of one error."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class BrokenValidator(UserError):
    """The validator itself is wrong, whatever the answer: its reference, tests, schema or database doesn't work."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict.

    Attributes:
        syntax: it parses.
        semantics: it does what was asked; never without syntax.
        errors: what is wrong, one line each, for its author: the same for the same answer, and nothing of what was expected.
    """

    syntax: bool
    semantics: bool
    errors: tuple[str, ...] = ()

    @classmethod
    def failed(cls, *errors: str, syntax: bool = True) -> Judged:
        """Semantics fail, and syntax unless it is said to hold."""
        return cls(syntax=syntax, semantics=False, errors=tuple(map(one_line, errors)))

    @classmethod
    def passed(cls) -> Judged:
        """Nothing is wrong."""
        return cls(syntax=True, semantics=True)


def one_line(words: str) -> str:
    """An error as text of one line: bounded, printable, without addresses in memory, which differ from run to run."""
    readable = "".join(character if character.isprintable() else " " for character in ADDRESS.sub("", words[: 2 * MAX_WORDS]))
    return " ".join(readable.split())[:MAX_WORDS]
