"""A campaign with one mutant of each kind, for the tests of its reports."""

from __future__ import annotations

import dataclasses

from parity.find.fault import Fault
from parity.mutants.campaign import Outcome
from parity.mutants.catalogue import Bug, Mutant
from parity.mutants.facts import Facts
from parity.mutants.verdicts import Verdict, judge, together
from parity.report import mutants as report
from parity.report.mutants import Campaign
from tests.parity.mutants.askables import CRASHED, GREEN, HUNG, RED, done, mutant

FAULT = Fault(
    stack="one", operation="attention_norm", direction="forward", sections=("layers.1", "layers.2"), tensor="attention_norm", where=(0, 1),
    got=1.0, wanted=2.0, observed=1.0, bound=0.1, relative=0.5,
)  # fmt: skip
BUGS = {
    bug.id: bug
    for bug in (
        Bug(id="real", area="norm", url="https://example.org/1", what="eps <b>outside</b>", tier="A", mutants=("killed", "located")),
        Bug(id="alive", area="loss", url="https://example.org/2", what="a sum", tier="A", mutants=("survived",)),
        Bug(id="same", area="nf4", url="https://example.org/3", what="none", tier="B", equivalent="equal", measured="0 of 1,000 differ"),
        Bug(id="else", area="moe", url="https://example.org/4", what="none", tier="C", not_applicable="no issue asks for experts"),
        Bug(id="undone", area="moe", url="https://example.org/5", what="none", tier="C"),
    )
}


def outcome(one: Mutant, planted: Facts, clean: Facts = GREEN) -> Outcome:
    """Of a mutant that its own check was asked of."""
    asked = tuple(judge(one, [one.check], ["one"], planted, clean))
    return Outcome(mutant=one, verdict=together(asked), asked=asked)


def in_graph(name: str, located: tuple[str, ...], blocks: str, *faults: Fault) -> Outcome:
    """Of a mutant of a graph, where bisect names these faults."""
    one = dataclasses.replace(mutant(name), located=located, blocks=blocks, bug="real")
    return outcome(one, done(*(cell.model_copy(update={"faults": faults}) for cell in RED.cells)))


OUTCOMES = (
    outcome(dataclasses.replace(mutant("killed"), bug="real", what="<script>alert(1)</script>"), RED),
    outcome(dataclasses.replace(mutant("survived"), bug="alive"), GREEN),
    outcome(mutant("crashed"), CRASHED),
    outcome(mutant("hung"), HUNG),
    Outcome(mutant=mutant("stale"), verdict=Verdict.STALE, reason="the text is gone"),
    outcome(mutant("red"), RED, RED),
    in_graph("located", ("attention_norm",), "layers.1", FAULT),
    in_graph("elsewhere", ("attention_norm",), "layers.0", FAULT),
    in_graph("another", ("q_proj",), "", FAULT),
    in_graph("not_named", ("q_proj",), ""),
)


def campaign(*outcomes: Outcome) -> Campaign:
    """As parity.mutants.whole makes it."""
    results = tuple(report.result(one, BUGS) for one in outcomes)
    bugs = tuple(report.bug_result(bug, {one.name: one for one in results}) for bug in BUGS.values())
    red = report.red_without(results)
    return Campaign(
        twostack="0.1.0", started="2031-01-31T12:00:00+00:00", machine={"system": "Linux"}, profile="quick", seed=7, until="killed",
        selection="all", sources="ab12", stacks={"one": {"numpy": "2"}}, totals=report.totals(results, bugs),
        localised=report.localised(results), red_without=red, mutants=results, bugs=bugs, wall=3.0, cpu=5.0,
        exit_code=report.exit_code(results, bugs, red),
    )  # fmt: skip
