"""What a campaign found, as JSON and as lines on a terminal; what is known of each survivor."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from contract.worker.files import replacing
from parity.mutants.generic.campaign import Outcome, Settings, Verdict
from parity.mutants.generic.reach import Reach


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(StrEnum):
    """Why a mutant survives."""

    EQUIVALENT = "equivalent"
    ONLY_SPEED = "only speed"
    MESSAGE = "message"
    NOT_HERE = "not on this device"
    GAP = "gap"


class Explained(_Model):
    """A survivor: what it is, and why the gate can't or does not see it."""

    kind: Kind
    why: str = Field(min_length=1)


class MutantRecord(_Model):
    """A mutant and what became of it."""

    name: str
    module: str
    line: int
    operator: str
    what: str
    before: str
    after: str
    verdict: Verdict
    by: str = Field(description="the check that settled it; empty of one that survived or was not reached")
    tap: str
    reason: str
    checks: int = Field(description="how many checks run its statement")
    seconds: float
    explained: Explained | None = Field(description="of a survivor, where it is known")


class GenericRecord(_Model):
    """A whole campaign. kill_rate: killed / (killed + survived); crashed, hung and not reached are told beside it."""

    seed: int
    profile: str
    totals: dict[Verdict, int]
    kill_rate: float | None
    survivors: dict[str, int] = Field(description="survivors by kind; 'unexplained' too")
    red: dict[str, str] = Field(description="checks that were not asked, since they are not green without a mutant")
    files: dict[str, dict[Verdict, int]]
    operators: dict[str, dict[Verdict, int]]
    mutants: tuple[MutantRecord, ...]

    @property
    def exit_code(self) -> int:
        """1 where a survivor is not explained, or a mutant hung."""
        return int(self.survivors.get("unexplained", 0) > 0 or self.totals.get(Verdict.HUNG, 0) > 0)


@cache
def survivors() -> Mapping[str, Explained]:
    """The survivors that are explained, by name."""
    tables = tomllib.loads(Path(__file__).with_name("survivors.toml").read_text(encoding="utf-8"))
    return {name: Explained.model_validate(table) for name, table in tables.items()}


def of(outcomes: Sequence[Outcome], found: Reach, settings: Settings, seed: int) -> GenericRecord:
    """The record of a campaign; seed: the one that drew the mutants."""
    mutants = tuple(_mutant(outcome) for outcome in outcomes)
    totals = Counter(one.verdict for one in mutants)
    settled = totals[Verdict.KILLED] + totals[Verdict.SURVIVED]
    kinds = Counter(one.explained.kind.value if one.explained else "unexplained" for one in mutants if one.verdict is Verdict.SURVIVED)
    return GenericRecord(
        seed=seed, profile=settings.profile, totals={verdict: totals[verdict] for verdict in Verdict},
        kill_rate=totals[Verdict.KILLED] / settled if settled else None, survivors=dict(sorted(kinds.items())), red=found.red,
        files=_by([(one.module, one.verdict) for one in mutants]), operators=_by([(one.operator, one.verdict) for one in mutants]),
        mutants=mutants,
    )  # fmt: skip


def _mutant(outcome: Outcome) -> MutantRecord:
    place = outcome.place
    return MutantRecord(
        name=place.name, module=place.module, line=place.line, operator=place.operator, what=place.what, before=place.before,
        after=place.after, verdict=outcome.verdict, by=outcome.by, tap=outcome.tap, reason=outcome.reason, checks=len(outcome.checks),
        seconds=outcome.seconds, explained=survivors().get(place.name) if outcome.verdict is Verdict.SURVIVED else None,
    )  # fmt: skip


def _by(pairs: Sequence[tuple[str, Verdict]]) -> dict[str, dict[Verdict, int]]:
    found: dict[str, dict[Verdict, int]] = {}
    for name, verdict in sorted(pairs):
        counts = found.setdefault(name, {})
        counts[verdict] = counts.get(verdict, 0) + 1
    return found


def write(record: GenericRecord, path: Path) -> None:
    """Writes it as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write(record.model_dump_json(indent=2).encode())


def lines(record: GenericRecord) -> list[str]:
    """The record in words: the totals, then every mutant that is neither killed nor explained."""
    told = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in record.totals.items())
    rate = (
        "nothing was killed or survived" if record.kill_rate is None else f"{record.kill_rate:.1%} of those killed or survived were killed"
    )
    explained = ", ".join(f"{count} {kind}" for kind, count in record.survivors.items()) or "none"
    found = [f"{len(record.mutants)} mutants: {told}", rate, f"survivors: {explained}"]
    found += [f"not asked, red without a mutant: {check}: {why}" for check, why in record.red.items()]
    shown = (Verdict.SURVIVED, Verdict.HUNG, Verdict.CRASHED, Verdict.NOT_REACHED)
    for verdict in shown:
        for one in record.mutants:
            if one.verdict is verdict and one.explained is None:
                found.append(
                    f"{verdict.replace('_', ' ')}: {one.name} line {one.line}: {one.before} -> {one.after}; {one.reason or one.what}"
                )
    return found
