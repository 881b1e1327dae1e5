"""The exit code of a command that does several things, each of which may fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from contract.errors import EnvironmentUnfit, MissingError, UserError
from contract.worker.answers import HarnessError

USAGE, UNFIT, HARNESS, MISSING = 2, 5, 3, 4
ORDER = (USAGE, UNFIT, 1, HARNESS, MISSING, 0)
"""Of several, the first."""


class Exits:
    """Collects exit codes, and says on standard error what made one, a line each."""

    def __init__(self) -> None:
        self._codes = {0}

    def add(self, code: int) -> None:
        """One more."""
        self._codes.add(code)

    @property
    def code(self) -> int:
        """The one to end with."""
        return next(code for code in ORDER if code in self._codes)

    @contextmanager
    def told(self) -> Iterator[None]:
        """What is wrong with one thing ends that one alone."""
        try:
            yield
        except MissingError as error:
            self._tell(error, MISSING)
        except EnvironmentUnfit as error:
            self._tell(error, UNFIT)
        except UserError as error:
            self._tell(error, USAGE)
        except HarnessError as error:
            self._tell(error, HARNESS)

    def _tell(self, error: Exception, code: int) -> None:
        print(f"parity: {error}", file=sys.stderr)
        self.add(code)
