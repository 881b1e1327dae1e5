"""`parity bisect`: a check of tier C, bisected on each of its cases whether it fails or not."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from contract.errors import MissingError, UserError
from contract.worker import discover
from parity import cells as matrix
from parity import session
from parity.checks import graph
from parity.checks.check import Case, Check, Plan
from parity.checks.graph_case import GraphCase
from parity.find import bisect
from parity.find.fault import Fault
from parity.profiles import FIXED_SEED, PROFILES
from parity.session import Options, Progress


def run(options: Options, question: str, progress: Progress) -> list[tuple[str, str, list[Fault]]]:
    """Case, stack, and the operations of that stack that are wrong; for each case of the one check in `options`.

    Raises:
        UserError: a check that is of no graph, or a question that it does not ask.
        MissingError: a stack declares none of what the question needs, or the checkpoint is not here.
        HarnessError, RequestFailed: a worker failed.
    """
    (check,) = session.select_checks((), options.checks, options.model)
    plan = _plan(check, question)
    session.require_sound(options.model, (check,))
    chosen = session.select_stacks(discover.discover(), options.stacks, options.devices or {})
    found = []
    with session.started(chosen, options.mutants) as processes:
        devices = session.devices(chosen, processes)
        for case in _cases(check, options):
            for device in devices:
                name = device.info.name
                if reason := matrix.unable(check, plan, device):
                    raise MissingError(f"{check.id} {question} of {name}: {reason}; leave it out with --stacks")
                declared = device.info.capabilities.elementary_on(device.name)
                faults = bisect.faults(
                    case, graph.asked_plan(case, plan), processes[name], declared, progress=_told(progress, name),
                )  # fmt: skip
                found.append((case.name, name, faults))
    return found


def _told(progress: Progress, stack: str) -> bisect.Progress:
    return lambda section, done, total: progress.doing(f"{stack} {section} ({done} of {total})")


def _plan(check: Check, question: str) -> Plan:
    for plan in check.plans:
        if plan.question == question and plan.graph is not None:
            return plan
    asked = [str(plan.question) for plan in check.plans if plan.graph is not None]
    if not asked:
        raise UserError(f"check {check.id} is of no whole graph; bisect takes those of tier C")
    raise UserError(f"check {check.id} does not ask {question!r}; allowed: {', '.join(asked)}")


def _cases(check: Check, options: Options) -> Iterator[GraphCase]:
    cases = check.fixed_cases() if check.fixed_cases else _drawn(check, options)
    for case in cases:
        assert isinstance(case, GraphCase)
        yield case


def _drawn(check: Check, options: Options) -> Iterator[Case]:
    """The cases that `parity run` draws with the same profile and seed."""
    drawn: list[Case] = []
    assert check.cases is not None

    @hypothesis.seed(FIXED_SEED if options.seed is None else options.seed)
    @settings(
        max_examples=check.drawn(PROFILES[options.profile].examples), phases=(Phase.generate,), database=None, deadline=None,
        derandomize=False, suppress_health_check=list(HealthCheck), verbosity=hypothesis.Verbosity.quiet,
    )  # fmt: skip
    @hypothesis.given(check.cases)
    def keep(case: Case) -> None:
        drawn.append(case)

    keep()
    return iter(drawn)
