"""Made-up cycles: equal backends unless told otherwise."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from contract.artifacts.promotion import Binding
from parity.scorecard.cycle import BoolArray, Cycle, Gate, Lane, Scores, Trained
from parity.scorecard.cycle_file import write_cycle

PRODUCTION, RESEARCH = "torch_qlora", "tinygrad_lora"
PACKAGES = {PRODUCTION: {"twostack": "0.1.0", "torch": "2.13.0"}, RESEARCH: {"twostack": "0.1.0", "tinygrad": "0.14.0"}}
SEEDS = {"first": (11, 12, 13), "second": (21, 22, 23)}
FAMILIES = tuple(f"family {number:02}" for number in range(20))


def sha(text: str) -> str:
    """A SHA-256 that stands for something."""
    return hashlib.sha256(text.encode()).hexdigest()


HASHES = {name: sha(name) for name in ("base", "data", "generation", "runtime", "suite")}
BINDING = Binding(
    stack=RESEARCH, packages=PACKAGES[RESEARCH], base_sha256=HASHES["base"], base="nf4", graph="full_causal", objective="chatml_supervised",
    suite="text-to-sql 1",
)  # fmt: skip


def scores(solved: BoolArray) -> Scores:
    """Solved at the first attempt, or stalled at the second."""
    attempts = np.where(solved, 1.0, 2.0)
    return Scores(
        complete=np.ones_like(solved), infra=np.zeros_like(solved), syntax=solved, semantics=solved, success=solved, strict=solved,
        stalled=~solved, valid=solved, attempts=attempts, milliseconds=attempts * 50.0, tokens=attempts * 30.0,
    )  # fmt: skip


def lane(name: str, cycle: str, stack: str, solved: BoolArray, **changes: Any) -> Lane:
    """A lane of a cycle: its own adapters, from the same start and in the same order as the other lanes of the same seed."""
    trained = tuple(
        Trained(
            seed=seed,
            initial_sha256=sha(f"initial {seed}"),
            order_sha256=sha(f"order {seed}"),
            adapter_sha256=sha(f"{cycle} {name} {seed}"),
        )
        for seed in SEEDS[cycle]
    )
    made = Lane(stack=stack, packages=PACKAGES[stack], trained=trained, hashes=HASHES, scores=scores(solved))
    return dataclasses.replace(made, **changes)


def solved(cycle: str, *, tasks: int, discordance: float, loss: float = 0.0, seed: int = 0) -> tuple[BoolArray, BoolArray, BoolArray]:
    """(baseline, candidate, control), [3, T] each: six tasks of ten solved, answers redrawn here and there.

    Exactly `loss` of the tasks, spread over the families, are solved by the baseline and not by the candidate, in every seed.
    """
    generator = np.random.default_rng([seed, *cycle.encode()])
    common = generator.random(tasks) < 0.6
    lanes = []
    for _ in range(3):
        anew = generator.random((3, tasks)) < discordance
        lanes.append(np.where(anew, generator.random((3, tasks)) < 0.6, common))
    lost = np.zeros(tasks, dtype=bool)
    lost[: round(loss * tasks)] = True
    baseline, candidate, control = lanes
    return baseline | lost, candidate & ~lost, control | lost


def cycle(name: str = "first", *, tasks: int = 800, discordance: float = 0.05, loss: float = 0.0, **changes: Any) -> Cycle:
    """A cycle whose backends are equal but for `loss` and what is changed."""
    baseline, candidate, control = solved(name, tasks=tasks, discordance=discordance, loss=loss)
    made = Cycle(
        name=name, binding=BINDING, digest=sha("digest"), gate=Gate(digest=sha("digest"), exit_code=0), max_attempts=3,
        max_milliseconds=1000.0, tasks=tuple(f"task {number}" for number in range(tasks)),
        families=tuple(FAMILIES[number % len(FAMILIES)] for number in range(tasks)),
        baseline=lane("baseline", name, PRODUCTION, baseline), candidate=lane("candidate", name, RESEARCH, candidate),
        control=lane("control", name, PRODUCTION, control), evidence={"events.jsonl": sha(f"events {name}")},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def pair(**options: Any) -> list[Cycle]:
    """Two cycles."""
    return [cycle("first", **options), cycle("second", **options)]


def with_lane(made: Cycle, name: str, **changes: Any) -> Cycle:
    """A cycle with one lane changed."""
    return dataclasses.replace(made, **{name: dataclasses.replace(getattr(made, name), **changes)})


def with_scores(made: Cycle, name: str, **changes: Any) -> Cycle:
    """A cycle with some of one lane's scores changed."""
    return with_lane(made, name, scores=dataclasses.replace(getattr(made, name).scores, **changes))


def written(made: Cycle, folder: Path) -> Path:
    """The cycle on disk, with its evidence."""
    folder.mkdir(parents=True)
    content = f"events of {made.name}".encode()
    (folder / "events.jsonl").write_bytes(content)
    write_cycle(folder, dataclasses.replace(made, evidence={"events.jsonl": hashlib.sha256(content).hexdigest()}))
    return folder


def bound(binding: Binding) -> list[Cycle]:
    """Equal backends, the candidate the one that the binding names."""
    cycles = []
    for made in pair():
        hashes = {**HASHES, "base": binding.base_sha256}
        lanes = {name: dataclasses.replace(one, hashes=hashes) for name, one in made.lanes().items()}
        lanes["candidate"] = dataclasses.replace(lanes["candidate"], stack=binding.stack, packages=binding.packages)
        cycles.append(dataclasses.replace(made, binding=binding, **lanes))
    return cycles
