"""A check's inputs, in the order in which every run asks them: the same ones for the same profile and seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import set_hypothesis_home_dir

from contract.errors import UserError
from contract.worker.files import cache_folder
from parity.checks.check import Case, Check
from parity.profiles import Profile

set_hypothesis_home_dir(cache_folder() / "hypothesis")  # not into the folder that the user happens to be in

Shown = Callable[[int, Case, bool], None]
"""(number from 0, case, whether it was drawn)."""


def explore(check: Check, profile: Profile, seed: int, show: Shown) -> str:
    """Shows a check's fixed cases, then its drawn ones; returns why not all fixed ones could be made, if so."""
    missing, fixed = "", profile.fixed(check)
    cases = itertools.islice(check.fixed_cases(), fixed) if check.fixed_cases else iter(())
    for number in range(fixed):
        try:
            case = next(cases, None)
        except UserError as error:  # of what could not be made, not of what is asked of it
            missing = str(error)
            break
        if case is None:
            break
        show(number, case, False)
    drawn, failed = itertools.count(fixed), list[Exception]()

    def shown(case: Case) -> None:
        if failed:  # hypothesis takes an error for its own: it would draw the case again, and tell of both times
            return
        try:
            show(next(drawn), case, True)
        except Exception as error:
            failed.append(error)

    draw(check, shown, profile.drawn(check), seed, (Phase.generate,))
    if failed:
        raise failed[0]
    return missing


def draw(check: Check, example: Callable[[Case], None], examples: int, seed: int, phases: tuple[Phase, ...]) -> None:
    """Shows `example` so many of a check's drawn cases; the same ones for the same seed."""
    if check.cases is None or examples == 0:
        return

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples, phases=phases, database=None, deadline=None, derandomize=False, suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False, verbosity=hypothesis.Verbosity.quiet,
    )  # fmt: skip
    @hypothesis.given(check.cases)
    def body(case: Case) -> None:
        example(case)

    body()
