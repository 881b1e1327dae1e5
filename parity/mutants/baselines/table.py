"""The tables of docs/evidence.md, made from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from contract.errors import UserError
from contract.worker.files import replacing
from parity.mutants.baselines import rules
from parity.mutants.baselines.record import NOT_ASKED, Evidence, Seen
from parity.mutants.baselines.seeing import Sight
from parity.mutants.baselines.units import Inputs

BEGIN, END = "<!-- made by benchmarks/evidence.py -->", "<!-- end -->"
KILLED = "killed"
"""The gate's verdict on a mutant that it caught."""

NAMES = tuple(rule.name for rule in rules.EVERY)
TITLES = {"A": "A: primitives", "B": "B: NF4", "C": "C: graphs", "D": "D: training", "E": "E: artifacts"}
INPUTS: Mapping[Inputs, str] = {"hard": "On the inputs that the gate draws", "ordinary": "On the ordinary input"}


def put(evidence: Evidence, page: Path) -> None:
    """Writes the tables into a page, between its two marks.

    Raises:
        UserError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} must have the lines {BEGIN} and {END}, between which the tables go; restore them")
    with replacing(page) as file:
        file.write(f"{before}{BEGIN}\n\n{tables(evidence)}\n{END}{after}".encode())


def made(page: Path) -> str:
    """What stands between a page's marks."""
    return page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip("\n") + "\n"


def tables(evidence: Evidence) -> str:
    """All of them, in Markdown."""
    mutants = [one for one in evidence.mutants if not one.failed]
    parts = [
        _measured(evidence),
        "### The rules\n\n" + _table(("rule", "fails where", "from"), [(one.name, f"`{one.says}`", one.source) for one in rules.EVERY]),
        "### By tier\n\n" + _sights(mutants, lambda one: TITLES[one.tier], "tier of the mutant's check"),
        "### By area of the real bugs\n\n" + _sights([one for one in mutants if one.area], lambda one: one.area, "area"),
        "### False alarms\n\n" + _alarms(evidence),
        "### What the gate caught and no rule saw\n\n" + _unseen(mutants),
    ]
    if lacking := [one for one in evidence.mutants if one.failed]:
        parts.append("### Not measured\n\n" + _table(("mutant", "why"), [(f"`{one.name}`", one.failed) for one in lacking]))
    return "\n".join(parts)


def _measured(evidence: Evidence) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in evidence.versions.items())
    machine = f"{evidence.machine['processor']}, Python {evidence.machine['python']}"
    asked = Counter(one.gate for one in evidence.mutants)
    verdicts = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in sorted(asked.items()))
    return (
        f"{len(evidence.mutants)} mutants; the gate: {verdicts}. Profile {evidence.profile}, seed {evidence.seed}; {versions}; {machine}. "
        f"Sources {evidence.sources[:16]}.\n"
    )


def _sights(mutants: Sequence[Seen], kind: Callable[[Seen], str], title: str) -> str:
    """Mutants by kind: those that the gate caught, and those that each rule saw; a table for each kind of inputs."""
    if not mutants:
        return "None.\n"
    groups = sorted({kind(one) for one in mutants})
    parts = []
    for inputs, name in INPUTS.items():
        rows = [_row(group, [one for one in mutants if kind(one) == group], inputs) for group in groups]
        parts.append(f"{name}:\n\n" + _table((title, "mutants", "gate", *NAMES), [*rows, _row("all", mutants, inputs)]))
    return "\n".join(parts)


def _row(name: str, mutants: Sequence[Seen], inputs: Inputs) -> tuple[str, ...]:
    asked = sum(one.gate != NOT_ASKED for one in mutants)
    caught = f"{sum(one.gate == KILLED for one in mutants)} of {asked}" if asked else NOT_ASKED
    return name, str(len(mutants)), caught, *(_count(mutants, rule, inputs) for rule in NAMES)


def _count(mutants: Iterable[Seen], rule: str, inputs: Inputs) -> str:
    """How many of those that a rule applies to it saw; in brackets, on how many it is red without the bug too."""
    sights = Counter(one.of(inputs).get(rule, Sight.NOT_APPLICABLE) for one in mutants)
    asked = sum(count for sight, count in sights.items() if sight is not Sight.NOT_APPLICABLE)
    red = f" ({sights[Sight.RED_ANYWAY]})" if sights[Sight.RED_ANYWAY] else ""
    return f"{sights[Sight.SEEN]}{red} of {asked}" if asked else "n/a"


def _alarms(evidence: Evidence) -> str:
    """By rule and inputs: on how many checks, and how many tensors, it fails on the stacks as they are."""
    rows = []
    for name in NAMES:
        cells = []
        for inputs in ("hard", "ordinary"):
            of = [one for one in evidence.alarms if one.rule == name and one.inputs == inputs]
            red = sum(bool(one.failing) for one in of)
            cells += [f"{red} of {len(of)}", f"{sum(one.failing for one in of)} of {sum(one.compared for one in of)}"]
        rows.append((name, *cells))
    return _table(("rule", "checks, hard", "tensors, hard", "checks, ordinary", "tensors, ordinary"), rows)


def _unseen(mutants: Iterable[Seen]) -> str:
    rows = [(f"`{one.name}`", one.tier, one.what) for one in mutants if one.gate in (KILLED, NOT_ASKED) and _missed(one)]
    return _table(("mutant", "tier", "what"), rows) if rows else "None.\n"


def _missed(mutant: Seen) -> bool:
    """Whether some rule applies to it, and none saw it."""
    sights = {*mutant.hard.values(), *mutant.ordinary.values()} - {Sight.NOT_APPLICABLE}
    return bool(sights) and Sight.SEEN not in sights


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
