"""How often the rule promotes, holds and rejects: tables over discordance, training seeds, families and tasks.

Run: python -m parity.scorecard.simulation [--draws N] [--out FILE]

The same draws give the same tables. Each entry's standard error is at most 0.5 / sqrt(draws).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from parity.options import Progress
from parity.scorecard.promotion_rule import Rule, read_rule
from parity.scorecard.simulated import World
from parity.scorecard.simulated_coverage import coverage
from parity.scorecard.simulated_rule import decide

_SEED = 20260101
_RESAMPLES = 1000
"""Instead of the rule's 10,000: ten times as fast; over many draws the bounds' own noise averages out."""

BASE = World()
_EQUAL = replace(BASE, loss=0.0)
_TRUE_LOSS = replace(BASE, loss=0.05)
_SDS = (0.0, 0.005, 0.01, 0.02)
_SHARES = (0.05, 0.1, 0.2)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Worlds, a row each. covers: the share of bounds that hold is asked, rather than the share of verdicts."""

    title: str
    varied: tuple[str, ...]
    worlds: tuple[World, ...]
    covers: bool = False


def tables() -> tuple[Table, ...]:
    """What docs/scorecard.md shows."""
    tasks = (World(tasks=count, discordance=share, seed_sd=sd) for count in (400, 600, 800, 1200) for share in _SHARES for sd in _SDS)
    losses = (replace(BASE, loss=loss) for loss in (-0.02, 0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07))
    errors = (replace(_TRUE_LOSS, discordance=share, seed_sd=sd) for share in _SHARES for sd in (*_SDS, 0.03))
    seeds = (replace(BASE, loss=loss, seeds=count, seed_sd=sd) for loss in (0.0, 0.05) for count in (3, 4, 5, 8) for sd in (0.01, 0.02))
    families = (
        replace(BASE, loss=loss, families=count, family_sd=sd) for loss in (0.0, 0.05) for count in (20, 40) for sd in (0.0, 0.02, 0.05)
    )
    persistent = (replace(BASE, loss=loss, persistent=share) for loss in (0.0, 0.05) for share in (0.0, 0.5, 1.0))
    cycles = (replace(BASE, loss=loss, cycles=count) for loss in (0.0, 0.05) for count in (2, 3))
    broken = (replace(BASE, control_loss=loss) for loss in (0.0, 0.02, 0.03, 0.05, 0.08))
    covered = (
        World(loss=0.05, seeds=count, seed_sd=sd, family_sd=family)
        for count in (3, 5) for sd in (0.0, 0.01, 0.02) for family in (0.0, 0.02, 0.05)
    )  # fmt: skip
    return (
        Table(title="Equal backends", varied=("tasks", "discordance", "seed_sd"), worlds=tuple(tasks)),
        Table(title="By true loss", varied=("loss",), worlds=tuple(losses)),
        Table(title="A true loss of 5 points", varied=("discordance", "seed_sd"), worlds=tuple(errors)),
        Table(title="By training seeds in a cycle", varied=("loss", "seeds", "seed_sd"), worlds=tuple(seeds)),
        Table(title="By families", varied=("loss", "families", "family_sd"), worlds=tuple(families)),
        Table(title="Where a lane's answers persist over its seeds", varied=("loss", "persistent"), worlds=tuple(persistent)),
        Table(title="By cycles", varied=("loss", "cycles"), worlds=tuple(cycles)),
        Table(title="A/A with a broken harness", varied=("control_loss",), worlds=tuple(broken)),
        Table(title="Upper bounds that hold", varied=("seeds", "seed_sd", "family_sd"), worlds=tuple(covered), covers=True),
    )


_VERDICTS = ("PROMOTE", "HOLD", "REJECT", "INVALID", "semantics within", "McNemar", "family")
_COVERED = ("cycle: t", "BCa", "wider", "pooled: t", "BCa", "wider")


def row(table: Table, world: World, rule: Rule, draws: int) -> list[float]:
    """The shares of one world."""
    if table.covers:
        found = coverage(world, rule, draws=draws, seed=_SEED, resamples=_RESAMPLES)
        return [share for one in found for share in (one.t, one.bca, one.both)]
    came = decide(world, rule, draws=draws, seed=_SEED, resamples=_RESAMPLES)
    held = ~(came.promoted | came.rejected | came.control_failed)
    shares = (came.promoted, held, came.rejected, came.control_failed, ~came.inferior[:, 1], came.mcnemar, came.family)
    return [float(share.mean()) for share in shares]


def markdown(draws: int, progress: Progress) -> Iterator[str]:
    """The tables, a line at a time."""
    rule, made = read_rule(), tables()
    progress.total(sum(len(table.worlds) for table in made))
    margins = ", ".join(f"{name} {value}" for name, value in rule.margins.model_dump().items())
    standing = ", ".join(f"{name} {value}" for name, value in asdict(BASE).items())
    yield f"{draws} draws a row. Margins: {margins}. Where a table doesn't say otherwise: {standing}."
    for table in made:
        progress.doing(table.title)
        yield from ("", f"### {table.title}", "")
        yield _line((*table.varied, *(_COVERED if table.covers else _VERDICTS)))
        yield f"|{'---|' * (len(table.varied) + len(_COVERED if table.covers else _VERDICTS))}"
        for world in table.worlds:
            shares = row(table, world, rule, draws)
            yield _line((*(f"{getattr(world, name)}" for name in table.varied), *(f"{share:.3f}" for share in shares)))
            progress.step()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(
    draws: Annotated[int, typer.Option(min=100, max=1_000_000, help="Promotions drawn a row.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Writes the tables as Markdown; they're printed unless given.")] = None,
) -> None:
    """Writes the rule's operating characteristics, by simulation."""
    from contract.worker.files import replacing
    from parity.commands.options import require_writable
    from parity.report import terminal

    require_writable(out)
    with terminal.progress() as progress:
        lines: Iterable[str] = markdown(draws, progress)
        if out is None:
            for line in lines:
                print(line, flush=True)
            return
        text = "\n".join(lines) + "\n"
    with replacing(out) as file:
        file.write(text.encode())
    print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
