"""What a run is asked to do, and whom it tells what it does."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from parity.checks import graph
from parity.judge import waivers

CellKey = tuple[str, str, str, tuple[str, ...], tuple[str, ...]]
"""Check, question, dtype, stacks, devices."""


@dataclass(frozen=True, kw_only=True)
class ContractOptions:
    """A user's own run: its contract as `finetune` takes it, and a checkpoint in place of the contract's."""

    file: Path
    preset: str | None = None
    settings: tuple[str, ...] = ()
    model: str | None = None

    @property
    def flags(self) -> str:
        """What `parity run` is given for it, ready for a shell."""
        pairs = [("--contract", str(self.file)), *([("--preset", self.preset)] if self.preset else [])]
        pairs += [("--set", setting) for setting in self.settings]
        return " ".join(shlex.join(pair) for pair in pairs)


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """A run of which some cells are asked again.

    record:    the file that it was read from.
    started:   when it began.
    cells:     those that were not green.
    contract:  the digest of its contract; empty: it had none.
    """

    record: Path
    started: str
    cells: frozenset[CellKey]
    contract: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for; empty selections mean everything.

    contract:        a user's own run; its checks, c.run and d.run, are then asked, and of the others those that `tiers` names.
    allow_uncovered: questions of which a cell that is not covered is accepted.
    rerun:           ask these cells alone.
    jobs:            sets of workers that are asked at once, at most; a user's own run has one.
    """

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
    reproducers: Path | None = None
    contract: ContractOptions | None = None
    allow_uncovered: tuple[str, ...] = ()
    rerun: Rerun | None = None
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells while it goes on: what it does now, how many examples it will ask, and each one asked."""

    doing: Callable[[str], None] = lambda text: None
    total: Callable[[int], None] = lambda examples: None
    step: Callable[[], None] = lambda: None
