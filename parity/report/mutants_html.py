"""A campaign of mutants as one HTML file: the matrix of mutants and checks, which needs nothing else to be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2

from contract.worker.files import replacing
from parity.checks import registry
from parity.mutants.verdicts import CheckVerdict, Verdict
from parity.report.mutants import Campaign, MutantResult, Totals

_TEMPLATES = Path(__file__).parent
MARKS: Mapping[str, str] = {
    Verdict.KILLED: "✕", Verdict.SURVIVED: "○", Verdict.CRASHED: "!", Verdict.HUNG: "∞", Verdict.RED_WITHOUT: "?", Verdict.UNASKED: "·",
}  # fmt: skip
"""A sign a verdict, so that none is told by its colour alone."""


def write(campaign: Campaign, path: Path) -> None:
    """Writes the file, whole or not at all."""
    with replacing(path) as file:
        file.write(render(campaign).encode())


def render(campaign: Campaign, *, template: str = "mutants.html.j2") -> str:
    """The page; `mutants_matrix.html.j2` gives the part of it that another page can include, without head and style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    return environment.get_template(template).render(
        campaign=campaign, checks=_checks(campaign), cells={one.name: _cells(one) for one in campaign.mutants}, marks=MARKS,
        totals={name: getattr(campaign.totals, name) for name in Totals.model_fields},
    )  # fmt: skip


def _checks(campaign: Campaign) -> list[str]:
    """Every check that was asked of a mutant, in the order in which runs show them."""
    asked = {one.check for mutant in campaign.mutants for one in mutant.asked if one.verdict is not Verdict.UNASKED}
    known = [check.id for check in registry.CHECKS if check.id in asked]
    return [*known, *sorted(asked - set(known))]


def _cells(mutant: MutantResult) -> dict[str, CheckVerdict]:
    """Check -> what it said; of several askings the one that killed, else the last that says anything."""
    found: dict[str, CheckVerdict] = {}
    for one in mutant.asked:
        before = found.get(one.check)
        if before is None or (before.verdict is not Verdict.KILLED and one.verdict is not Verdict.UNASKED):
            found[one.check] = one
    return found
