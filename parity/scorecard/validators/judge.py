"""Judges answers, each by its validator. Nothing that an answer does ends the run: it is that answer's failure."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from parity.scorecard.sandbox.isolation import Isolation, method
from parity.scorecard.sandbox.limits import Limits
from parity.scorecard.validators import form, python
from parity.scorecard.validators.helper import Helper
from parity.scorecard.validators.judged import BrokenValidator, Judged
from parity.scorecard.validators.spec import ContainsValidator, PythonValidator, Validator

__all__ = ["BrokenValidator", "Judge", "Judged"]

MAX_ANSWER = 2**16
"""Characters."""


class Judge:
    """One answer at a time. It holds a process, so use it as a context manager.

    Args:
        isolation: of answers in Python; `none` runs them even where no sandbox can be had.
        limits: of one answer.
    """

    def __init__(self, *, isolation: Isolation = "required", limits: Limits | None = None) -> None:
        self._isolation, self._limits = isolation, limits or Limits()
        self._helper = Helper(self._limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._helper.close()

    def require(self, validators: Iterable[Validator]) -> None:
        """Refuses what these validators need and this machine hasn't got.

        Raises:
            EnvironmentUnfit: no isolation for answers in Python.
        """
        if any(isinstance(validator, PythonValidator) for validator in validators):
            method(self._isolation)

    def validate(self, validator: Validator, answer: str) -> Judged:
        """Judges an answer's canonical form (form.canonical).

        Raises:
            BrokenValidator: the validator itself is wrong.
            EnvironmentUnfit: no isolation can be had, and it was not said that none is needed.
        """
        if len(answer) > MAX_ANSWER:
            return Judged.failed(f"got {len(answer):,} characters; allowed: at most {MAX_ANSWER:,}", syntax=False)
        text = form.canonical(answer)
        if isinstance(validator, ContainsValidator):
            return _contains(validator, text)
        if isinstance(validator, PythonValidator):
            return python.judge(validator, text, method=method(self._isolation), limits=self._limits)
        return self._helper.judge(validator, text)


def _contains(validator: ContainsValidator, text: str) -> Judged:
    syntax = all(expected in text for expected in validator.expected)
    if syntax and all(expected in text for expected in validator.semantic_expected):
        return Judged.passed()
    return Judged.failed("what it must contain is not all there", syntax=syntax)
