"""Drawn cycles as files: what `parity promote` does, shown on evidence whose truth is known.

Run: python -m parity.scorecard.simulated_cycles DIR

Writes DIR/promote, DIR/reject, DIR/hold and DIR/invalid, two cycles each; `parity promote DIR/hold/*` then says HOLD. The same each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from contract.artifacts.promotion import Binding
from parity.scorecard.cycle import Cycle, Gate, Lane, LaneName, Scores, Trained
from parity.scorecard.cycle_file import write_cycle
from parity.scorecard.simulated import MAX_ATTEMPTS, Drawn, World, draw

_STACKS: Mapping[LaneName, str] = {"baseline": "torch_qlora", "candidate": "tinygrad_lora", "control": "torch_qlora"}
_KEY = 2
"""A draw whose verdicts are the named ones. With key 1 the equal backends were vetoed by McNemar's test, as about 2 in 100 are."""
_SAME = ("base", "data", "generation", "runtime", "suite")
_MILLISECONDS_AN_ATTEMPT, _MOST_MILLISECONDS = 100.0, 10_000.0

SHOWN = {
    "promote": World(tasks=400, discordance=0.05, seed_sd=0.0),
    "reject": World(tasks=400, loss=0.1),
    "hold": World(tasks=200, discordance=0.3),
    "invalid": World(tasks=200, discordance=0.05, seed_sd=0.005),
}
"""By the verdict that each is to give; the last one's parity gate is red."""


def cycles_of(world: World, lanes: tuple[Drawn, Drawn, Drawn], number: int) -> list[Cycle]:
    """One of the drawn promotions, as cycles."""
    named = dict(zip(_STACKS, lanes, strict=True))
    return [_cycle(world, {name: _scores(lane, number, _seeds(world, cycle)) for name, lane in named.items()}, cycle) for cycle in
            range(world.cycles)]  # fmt: skip


def _seeds(world: World, cycle: int) -> slice:
    return slice(cycle * world.seeds, (cycle + 1) * world.seeds)


def _scores(lane: Drawn, number: int, seeds: slice) -> Scores:
    solved = lane.semantics[number, seeds]
    attempts = np.where(solved, lane.attempts[number, seeds], np.where(lane.stalled[number, seeds], 2.0, float(MAX_ATTEMPTS)))
    return Scores(
        complete=np.ones_like(solved), infra=np.zeros_like(solved), syntax=lane.syntax[number, seeds], semantics=solved, success=solved,
        strict=lane.syntax[number, seeds], stalled=lane.stalled[number, seeds], valid=solved, attempts=attempts,
        milliseconds=attempts * _MILLISECONDS_AN_ATTEMPT, tokens=lane.tokens[number, seeds].astype(np.float64),
    )  # fmt: skip


def _cycle(world: World, scores: Mapping[LaneName, Scores], number: int) -> Cycle:
    lanes = {name: _lane(name, of, number) for name, of in scores.items()}
    binding = Binding(
        stack=_STACKS["candidate"], packages=dict(lanes["candidate"].packages), base_sha256=_sha256("base"), base="nf4",
        graph="full_causal", objective="chatml_supervised", suite="simulated 1",
    )  # fmt: skip
    return Cycle(
        name=f"simulated-{number + 1}", binding=binding, digest=_sha256("digest"), gate=Gate(digest=_sha256("digest"), exit_code=0),
        max_attempts=MAX_ATTEMPTS, max_milliseconds=_MOST_MILLISECONDS, tasks=tuple(f"task-{task:04}" for task in range(world.tasks)),
        families=tuple(f"family-{family:02}" for family in world.family_T), baseline=lanes["baseline"], candidate=lanes["candidate"],
        control=lanes["control"], evidence={"world.txt": _sha256(_world(world))},
    )  # fmt: skip


def _lane(name: LaneName, scores: Scores, cycle: int) -> Lane:
    seeds = [1000 * (cycle + 1) + number for number in range(scores.complete.shape[0])]
    trained = tuple(
        Trained(
            seed=seed, initial_sha256=_sha256(f"initial {seed}"), order_sha256=_sha256(f"order {seed}"),
            adapter_sha256=_sha256(f"{name} {seed}"),
        )
        for seed in seeds
    )  # fmt: skip
    hashes = {what: _sha256(what) for what in _SAME}
    return Lane(stack=_STACKS[name], packages={"simulated": "1"}, trained=trained, hashes=hashes, scores=scores)


def _world(world: World) -> str:
    return f"{world}\n"


def _sha256(text: str) -> str:
    """Of a text that stands for a file which a simulation doesn't have."""
    return hashlib.sha256(text.encode()).hexdigest()


def main(folder: Annotated[Path, typer.Argument(help="Where the cycles go; made where it is missing.", metavar="DIR")]) -> None:
    """Writes cycles that give each of the four verdicts."""
    for verdict, world in SHOWN.items():
        lanes = draw(world, 1, np.random.Generator(np.random.Philox(key=_KEY)))
        for cycle in cycles_of(world, lanes, 0):
            place = folder / verdict / cycle.name
            place.mkdir(parents=True, exist_ok=True)
            (place / "world.txt").write_text(_world(world), encoding="utf-8")
            assert cycle.gate is not None, "made with one"
            red = replace(cycle, gate=replace(cycle.gate, exit_code=1))
            write_cycle(place, red if verdict == "invalid" else cycle)


if __name__ == "__main__":
    typer.run(main)
