"""What there is to know of a check, from the check itself, the matrix and the catalogue of mutants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contract.errors import UserError
from contract.worker import discover
from contract.worker.operations import OPERATIONS
from parity import cells as matrix
from parity import workers
from parity.cells import Cell, Device
from parity.checks import own_run, registry
from parity.checks.check import Check, GraphNeeds, Plan, Question
from parity.checks.kinds import kind_of
from parity.mutants import catalogue
from parity.mutants.catalogue import Mutant
from parity.selection import no_such_check

MEANING: Mapping[Question, str] = {
    Question.SAME_FUNCTION: "do two stacks compute the same function? in float64 wherever there is one, since rounding hides nothing there",
    Question.PRECISION: "is each stack, alone, as precise as its dtype allows? held against the reference in float64",
    Question.FAST_PATH: "does a stack's production path equal its own plain path in the same dtype?",
}

MOST_RELATED = 8


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One check, explained.

    formulas: of the operations or the graph that it asks
    cells:    what is asked of whom, and why the rest is not
    mutants:  planted bugs that it is there to see; related: those of checks of the same operations, where it has none of its own
    """

    check: Check
    formulas: tuple[str, ...]
    cells: tuple[Cell, ...]
    bound: str
    theory: str
    breaks: str
    mutants: tuple[Mutant, ...]
    related: tuple[Mutant, ...]
    bisects: bool


def explain(check_id: str) -> Explanation:
    """A check by its id.

    Raises:
        UserError: there is none of that name (names those that are spelt alike), or it is of a user's own run.
    """
    check = _named(check_id)
    kind, mutants = kind_of(check), tuple(one for one in catalogue.read_all().values() if one.check == check.id)
    return Explanation(
        check=check, formulas=_formulas(check), cells=tuple(matrix.matrix([check], _devices())), bound=check.bound or kind.bound,
        theory=check.theory or kind.theory, breaks=check.breaks or kind.breaks, mutants=mutants, related=() if mutants else _related(check),
        bisects=check.locate is not None,
    )  # fmt: skip


def _named(check_id: str) -> Check:
    for check in registry.CHECKS:
        if check.id == check_id:
            return check
    if check_id in own_run.IDS:
        asked = f"parity run --contract run.yaml --only {check_id}"
        raise UserError(f"check {check_id} is of a run of yours; docs/gate.md, Your own run, says what it compares, and {asked} asks it")
    raise no_such_check(check_id, [check.id for check in registry.CHECKS])


def _devices() -> list[Device]:
    """Every known stack on its default device, whether it is installed or not."""
    return [
        Device(info=info, name=info.capabilities.devices[0], dtypes=workers.declared_dtypes(info)) for info in discover.discover().values()
    ]


def _formulas(check: Check) -> tuple[str, ...]:
    """Of each operation; of a graph, which one."""
    graphs = (_graph(needs) for needs in dict.fromkeys(plan.graph for plan in check.plans) if needs is not None)
    return tuple(dict.fromkeys((*(f"{op}: {OPERATIONS[op].formula}" for op in check.operations), *graphs)))


def _graph(needs: GraphNeeds) -> str:
    graph = "the proxy graph qlora_proxy_v1" if needs.proxy else f"the whole graph of {' or '.join(needs.model_types) or 'any type'}"
    own = [
        *(["in a training session"] if needs.session else []),
        *(["from files on disk"] if needs.score else []),
        *([f"by its production paths {', '.join(needs.paths)}"] if needs.paths else []),
        *(["on an NF4 base"] if needs.nf4 else []),
        *(["on packed batches"] if needs.packing else []),
        *(["with patterns of rank and alpha"] if needs.patterns else []),
        *([f"with {', '.join(needs.layout_options)}"] if needs.layout_options else []),
    ]
    return ", ".join([graph, *own])


def _related(check: Check) -> tuple[Mutant, ...]:
    """Mutants of checks that ask one of the same operations, or the same graphs."""
    mine = _subjects(check)
    subjects: dict[str, set[str]] = {one.id: _subjects(one) for one in registry.CHECKS}
    every: Sequence[Mutant] = [one for one in catalogue.read_all().values() if subjects.get(one.check, set()) & mine]
    return tuple(every[:MOST_RELATED])


def _subjects(check: Check) -> set[str]:
    plans: Sequence[Plan] = check.plans
    kinds = {model_type for plan in plans if plan.graph is not None for model_type in plan.graph.model_types}
    proxies = {"proxy" for plan in plans if plan.graph is not None and plan.graph.proxy}
    return {f"{check.tier} {name}" for name in (*check.operations, *kinds, *proxies)}
