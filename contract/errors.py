"""Errors that a person can act on."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence


class UserError(ValueError):
    """Something that the user can put right: shown as one line, without a traceback.

    The message says what was got, what is allowed, and what to do.
    """


class MissingError(UserError):
    """Something known that was asked for is not installed or not present here."""


class EnvironmentUnfit(UserError):
    """This machine can't do the work: no C compiler, an unwritable cache."""


class Interrupted(Exception):
    """Ctrl-C, heard by a command that left things whole: the message says what was saved, and how to go on."""


class ContractError(UserError):
    """An input that the contract does not allow: a file, a field, a row, or fields that don't go together.

    Attributes:
        place: file and field, or file and line.
        got, allowed, remedy: what was found there, what may stand there, what to do.
    """

    def __init__(self, place: str, *, got: str, allowed: str, remedy: str) -> None:
        super().__init__(f"{place}: got {got}; allowed: {allowed}; {remedy}")
        self.place, self.got, self.allowed, self.remedy = place, got, allowed, remedy


class ContractErrors(UserError):
    """Several of them, found in one reading: one line each."""

    def __init__(self, faults: Sequence[ContractError]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


class _Brief(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 0.30103  # Python itself refuses to spell an integer of over 4,300 digits
        return super().repr_int(x, level) if digits < sys.get_int_max_str_digits() - 1 else f"<an integer of {x.bit_length()} bits>"


_brief = _Brief()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80
_brief.maxlevel = 2


def printable(text: str) -> str:
    """Text for a terminal, on one line: paths and names come from outside, and may hold line feeds and escape sequences."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def brief(value: object) -> str:
    """A value from outside, for a message: on one line, of bounded length."""
    return " ".join(_brief.repr(value).split())
