"""Errors that a person can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right: shown as one line, without a traceback.

    The message says what was got, what is allowed, and what to do.
    """


class MissingError(UserError):
    """Something known that was asked for is not installed or not present here."""


class EnvironmentUnfit(UserError):
    """This machine can't do the work: no C compiler, an unwritable cache."""
