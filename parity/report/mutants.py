"""The record of a campaign of mutants: versioned, written as JSON, the source of its table and its matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.worker.files import replacing
from parity.mutants.campaign import Outcome
from parity.mutants.catalogue import Bug, Mutant
from parity.mutants.verdicts import CheckVerdict, Verdict

UNKILLED = (Verdict.SURVIVED, Verdict.CRASHED, Verdict.HUNG, Verdict.STALE)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Totals(_Record):
    """How many mutants were killed, survived, crashed, hung or are stale; how many bugs have none, being equivalent or not applicable."""

    killed: int = 0
    survived: int = 0
    crashed: int = 0
    hung: int = 0
    stale: int = 0
    equivalent: int = 0
    not_applicable: int = 0


class Localised(_Record):
    """Of mutants in graphs: bisect named exactly the operations that they change, and the block first where one is told."""

    graph_mutants: int
    exact: int
    share: float | None = Field(description="exact / graph_mutants; null where there are none")


class Where(_Record):
    """Where a mutant in a graph was looked for, and found."""

    expected: tuple[str, ...] = Field(description="operations")
    found: tuple[str, ...]
    expected_block: str = Field(description="a section of the graph; empty: any")
    found_block: str = Field(description="the first section that is wrong")
    exact: bool


class MutantResult(_Record):
    """What became of one mutant."""

    name: str
    what: str
    bug: str | None
    area: str
    stacks: tuple[str, ...]
    verdict: Verdict
    reason: str = Field(default="", description="why it is not killed")
    check: str = Field(description="the cheapest that should see it")
    killed_by: str = Field(default="", description="the first check that killed it")
    first_tap: str = Field(default="", description="the first tensor that was wrong there, in the order of computation")
    seconds: float = Field(default=0.0, description="of the checks that were asked")
    examples: int = Field(default=0, description="of the cell that killed it")
    where: Where | None = Field(default=None, description="null: no mutant of a graph")
    asked: tuple[CheckVerdict, ...] = ()


class BugResult(_Record):
    """A real bug, and what became of its mutants; `verdict` is the worst of them, or why it has none."""

    id: str
    area: str
    url: str
    what: str
    tier: str
    verdict: Literal["killed", "survived", "crashed", "hung", "stale", "not_asked", "equivalent", "not_applicable"]
    mutants: tuple[str, ...]
    reason: str = Field(default="", description="why it is equivalent or not applicable")
    measured: str = ""


class Campaign(_Record):
    """A whole campaign."""

    schema_version: Literal[1] = 1
    twostack: str
    started: str = Field(description="UTC, ISO 8601")
    machine: dict[str, str]
    profile: str
    seed: int
    until: str = Field(description="own: its own check; killed: the others too until one kills it; every: all checks")
    selection: str = Field(description="which mutants were asked: all, or the flags that chose them")
    sources: str = Field(description="SHA-256 of the source of contract, parity and stacks, without the catalogue")
    stacks: dict[str, dict[str, str]] = Field(description="stack -> package -> version")
    totals: Totals
    localised: Localised
    red_without: dict[str, str] = Field(description="check -> why it is not green without a mutant, so that nothing it says counts")
    mutants: tuple[MutantResult, ...]
    bugs: tuple[BugResult, ...]
    wall: float = Field(description="seconds of this campaign; what was known before took none")
    cpu: float = Field(description="processor seconds of this campaign, of all its processes")
    exit_code: int


def result(outcome: Outcome, bugs: Mapping[str, Bug]) -> MutantResult:
    """A mutant's result."""
    mutant = outcome.mutant
    assert isinstance(mutant, Mutant)
    killer = outcome.killed_by
    last = killer or next((one for one in reversed(outcome.asked) if one.verdict is outcome.verdict), None)
    red = next((one for one in outcome.asked if one.verdict is Verdict.RED_WITHOUT), None)
    shown = last if red is None or killer is not None else red
    where = _where(mutant, outcome.asked) if mutant.located else None
    return MutantResult(
        name=mutant.name, what=mutant.what, bug=mutant.bug, area=bugs[mutant.bug].area if mutant.bug else "", stacks=mutant.stacks,
        verdict=outcome.verdict, check=mutant.check, where=where, asked=outcome.asked,
        reason="" if killer else outcome.reason or ("" if shown is None else shown.reason or f"every check is green, {shown.check} too"),
        killed_by=killer.check if killer else "", first_tap=_tap(killer) if killer else "", examples=killer.examples if killer else 0,
        seconds=round(sum(one.seconds for one in outcome.asked), 3),
    )  # fmt: skip


def _tap(killer: CheckVerdict) -> str:
    """In which block too, where bisect named it."""
    if killer.faults:
        return f"{killer.faults[0].sections[0]}/{killer.faults[0].operation}"
    return killer.tap


def _where(mutant: Mutant, asked: Sequence[CheckVerdict]) -> Where:
    """By the first check that killed it."""
    faults = next((one.faults for one in asked if one.verdict is Verdict.KILLED), ())
    found = tuple(dict.fromkeys(fault.operation for fault in faults))
    block = faults[0].sections[0] if faults else ""
    exact = bool(faults) and set(found) == set(mutant.located) and mutant.blocks in ("", block)
    return Where(expected=mutant.located, found=found, expected_block=mutant.blocks, found_block=block, exact=exact)


def bug_result(bug: Bug, asked: Mapping[str, MutantResult]) -> BugResult:
    """A bug's result; asked: mutants by name."""
    reason = bug.equivalent or bug.not_applicable
    mine = [asked[name].verdict for name in bug.mutants if name in asked]
    verdict = "equivalent" if bug.equivalent else "not_applicable" if bug.not_applicable else _worst(mine)
    return BugResult.model_validate(
        {
            "id": bug.id, "area": bug.area, "url": bug.url, "what": bug.what, "tier": bug.tier, "verdict": verdict,
            "mutants": bug.mutants, "reason": reason, "measured": bug.measured,
        }
    )  # fmt: skip


def _worst(verdicts: Sequence[Verdict]) -> str:
    return next((one.value for one in (*UNKILLED, Verdict.KILLED) if one in verdicts), "not_asked")


def totals(mutants: Sequence[MutantResult], bugs: Sequence[BugResult]) -> Totals:
    """Counted."""
    named = [*(one.verdict.value for one in mutants), *(one.verdict for one in bugs if one.verdict in ("equivalent", "not_applicable"))]
    return Totals(**{name: named.count(name) for name in Totals.model_fields})


def localised(mutants: Sequence[MutantResult]) -> Localised:
    """Counted."""
    places = [one.where for one in mutants if one.where is not None]
    exact = sum(one.exact for one in places)
    return Localised(graph_mutants=len(places), exact=exact, share=exact / len(places) if places else None)


def red_without(mutants: Sequence[MutantResult]) -> dict[str, str]:
    """Check -> why it is red without a mutant."""
    return {one.check: one.reason for mutant in mutants for one in mutant.asked if one.verdict is Verdict.RED_WITHOUT}


def exit_code(mutants: Sequence[MutantResult], bugs: Sequence[BugResult], red: Mapping[str, str]) -> int:
    """0 where every mutant was killed, by checks that are green without it, and every bug has a mutant or a reason; else 1."""
    unkilled = any(one.verdict is not Verdict.KILLED for one in mutants) or any(one.verdict == "not_asked" for one in bugs)
    return int(bool(red) or unkilled)


def write(campaign: Campaign, path: Path) -> None:
    """Writes the record as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(campaign.model_dump_json(indent=2).encode())


def json_schema() -> str:
    """The JSON Schema of the record (docs/mutants.schema.json)."""
    return json.dumps(Campaign.model_json_schema(mode="serialization"), indent=2) + "\n"
