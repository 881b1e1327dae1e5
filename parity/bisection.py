"""`parity bisect`: a check of tier C, bisected on each of its cases whether it fails or not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import Phase

from contract.errors import MissingError, UserError
from contract.worker import discover
from parity import cells as matrix
from parity import drawing, selection, workers
from parity.checks import graph
from parity.checks.check import Case, Check, Plan
from parity.checks.graph_case import GraphCase
from parity.find import bisect
from parity.find.fault import Fault
from parity.options import Options, Progress
from parity.profiles import FIXED_SEED, PROFILES


def run(options: Options, question: str, progress: Progress) -> list[tuple[str, str, list[Fault]]]:
    """Case and dtype, stack, and the operations of that stack that are wrong; for each case of the one check in `options`.

    Raises:
        UserError: a check that is of no graph, or a question that it does not ask.
        MissingError: a stack declares none of what the question needs, or the checkpoint is not here.
        HarnessError, RequestFailed: a worker failed.
    """
    (check,) = selection.select_checks((), options.checks, options.model)
    plans = _plans(check, question)
    selection.require_sound(options.model, (check,))
    chosen = selection.select_stacks(discover.discover(), options.stacks, options.devices or {})
    selection.require_stacks_of_mutants(options.mutants, chosen)
    found = []
    with workers.started(chosen, options.mutants) as processes:
        devices = workers.devices(chosen, processes)
        for case, plan, device in itertools.product(_cases(check, options), plans, devices):
            name = device.info.name
            if reason := matrix.unable(check, plan, device):
                raise MissingError(f"{check.id} {question} of {name}: {reason}; leave it out with --stacks")
            declared = device.info.capabilities.elementary_on(device.name)
            faults = bisect.faults(case, graph.asked_plan(case, plan), processes[name], declared, progress.doing)
            found.append((f"{case.name}, {plan.dtype}", name, faults))
    return found


def _plans(check: Check, question: str) -> list[Plan]:
    """The question in each dtype in which it is asked."""
    of_graphs = [plan for plan in check.plans if plan.graph is not None and not plan.graph.session]
    plans = [plan for plan in of_graphs if plan.question == question]
    if plans:
        return plans
    asked = list(dict.fromkeys(str(plan.question) for plan in of_graphs))
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
    seed = FIXED_SEED if options.seed is None else options.seed
    drawing.draw(check, drawn.append, PROFILES[options.profile].drawn(check), seed, (Phase.generate,))
    return iter(drawn)
