"""Learning rates of every optimiser step: transformers' own, and the formula."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.checks import policy_files
from parity.checks.check import Answered, Case
from parity.checks.policy_case import PolicyCase, golden
from parity.checks.trajectory_judges import ledger
from parity.judge import verdict
from parity.judge.bounds import Bound
from parity.judge.verdict import Comparison
from parity.reference import policy

ROWS, BATCH_SIZE, GRAD_ACCUM = 5, 1, 3
"""Two optimiser steps an epoch, of three micro-batches and of two."""

COUNT = 9
"""Cases of the golden file."""

ROUNDING = "rounding of the formula (docs/theory.md, The shared policy)"
"""Why a rate may differ from the formula."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScheduleCase(PolicyCase):
    """A run; rates: of some of its steps, by another program."""

    base: float
    warmup: int
    total: int
    rates: Mapping[int, float]
    made_by: str


def cases() -> Iterator[ScheduleCase]:
    """Each run of the golden file; its end is no multiple of an epoch's steps."""
    folder = tempfile.TemporaryDirectory(prefix="twostack-policy-")
    home, made = Path(folder.name), golden("schedule")
    policy_files.write(home, [{"prompt": "a", "response": "b"}] * ROWS)
    assert len(made["cases"]) == COUNT
    for one in made["cases"]:
        exec_: dict[str, Any] = {"batch_size": BATCH_SIZE, "grad_accum": GRAD_ACCUM, "max_steps": one["total"]}
        exec_ |= {"epochs": one["total"] // 2 + 1, "learning_rate": one["base"], "warmup_steps": one["warmup"]}
        yield ScheduleCase(
            name=f"{one['total']} steps, {one['warmup']} of warm-up", inputs={}, folder=folder,
            asked=(policy_files.asked(policy_files.contract(home, exec=exec_), count=0),),
            base=one["base"], warmup=one["warmup"], total=one["total"], made_by=made["made_by"],
            rates={int(step): rate for step, rate in one["rates"].items()},
        )  # fmt: skip


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Bit for bit where another program says what it is; within the formula's own rounding everywhere."""
    assert isinstance(case, ScheduleCase)
    rates = answered[0].answers[0]["learning_rates"]
    steps = ledger("steps", np.array([len(rates)], np.int64), np.array([case.total], np.int64), "max_steps")
    if not steps.passed:
        return [steps]
    known = sorted(case.rates)
    formula, limit = policy.learning_rates(case.base, case.warmup, case.total)
    return [
        steps,
        ledger("learning rates", rates[known], np.array([case.rates[step] for step in known]), case.made_by.partition(": ")[2]),
        verdict.within("learning rates, formula", rates, formula, Bound(limit=limit, source=ROUNDING)),
    ]
