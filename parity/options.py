"""What a run is asked to do, and whom it tells what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from parity.checks import graph
from parity.judge import waivers


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; empty selections mean everything."""

    tiers: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    devices: Mapping[str, str] | None = None
    profile: str = "ci"
    seed: int | None = None
    time_budget: float | None = None
    mutants: tuple[str, ...] = ()
    model: str = graph.MODEL
    waiver_file: Path = waivers.FILE


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells while it goes on: what it does now, how many examples it will ask, and each one asked."""

    doing: Callable[[str], None] = lambda text: None
    total: Callable[[int], None] = lambda examples: None
    step: Callable[[], None] = lambda: None
