"""The order of rows over epochs, the rows that are held back, where a resumed run goes on: laws, and the statistics of a permutation."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.checks import policy_files
from parity.checks.check import Answered, Arrays, Case
from parity.checks.policy_case import VALIDATION, PolicyCase, ShownStep, samples_of, steps_of
from parity.checks.trajectory_judges import ledger
from parity.judge import verdict
from parity.judge.verdict import Comparison
from parity.reference import policy

ROWS, EPOCHS = 23, 24
_ONCE = "law: an epoch has each row once"
_RESUMED = "law: a run that begins at a step is the rest of the whole run"
_MATCHES = "fixed points of independent permutations (docs/theory.md, The shared policy)"
DIFFICULTY = (3, 1, None, 2)
"""Of every fourth row; None: it says nothing, and such rows come last."""
_UNKNOWN = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderCase(PolicyCase):
    """A run of several epochs, the same run from a step in its middle, and the same with another seed.

    share: of the rows that are held back. size: rows of a step. start: of the second.
    """

    share: float
    size: int
    start: int
    difficulty: bool


def cases() -> Iterator[OrderCase]:
    """Shuffled, with rows held back, and by difficulty."""
    yield _case("shuffled", share=0.0, size=(ROWS, 1), epochs=EPOCHS, start=7)
    yield _case("ragged last steps, rows held back", share=0.2, size=(2, 3), epochs=3, start=5)
    yield _case("by difficulty", share=0.1, size=(5, 1), epochs=4, start=6, difficulty=True)


def _case(
    name: str, *, share: float, size: tuple[int, int], epochs: int, start: int, difficulty: bool = False
) -> OrderCase:  # fmt: skip
    folder = tempfile.TemporaryDirectory(prefix="twostack-policy-")
    home = Path(folder.name)
    rows: list[dict[str, Any]] = [{"prompt": f"{number}?", "response": f"{number}."} for number in range(ROWS)]
    for number, row in enumerate(rows):
        row |= {"difficulty": DIFFICULTY[number % 4]} if difficulty and DIFFICULTY[number % 4] is not None else {}
    policy_files.write(home, rows)
    data = {"validation_split": share, "curriculum": "difficulty" if difficulty else "none"}
    exec_: dict[str, Any] = {"batch_size": size[0], "grad_accum": size[1], "epochs": epochs}
    one, other = (policy_files.contract(home, data=data, exec={**exec_, "seed": seed}) for seed in (11, 12))
    return OrderCase(
        name=name, inputs={}, folder=folder, share=share, size=size[0] * size[1], start=start, difficulty=difficulty,
        asked=(policy_files.asked(one), policy_files.asked(one, start=start), policy_files.asked(other)),
    )  # fmt: skip


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Each row once an epoch, the rest of the run from its middle, other orders for other epochs and seeds."""
    assert isinstance(case, OrderCase)
    whole, resumed, _ = answered[0].answers
    held = math.floor(case.share * ROWS)
    steps, others, back = steps_of(whole), steps_of(answered[0].answers[2]), samples_of(steps_of(whole, VALIDATION))
    epochs = _epochs(steps)
    seen, wanted = [row for epoch in epochs for row in sorted(epoch)], sorted(set(range(ROWS)) - set(back)) * len(epochs)
    sizes = [len(step.rows()) for step in steps]
    return [
        ledger("rows of each epoch, sorted", np.array(seen, np.int64), np.array(wanted, np.int64), _ONCE),
        ledger("rows held back", _counts(back), np.array([held, held], np.int64), "floor(share x rows), each once"),
        ledger("rows of each step", np.array(sizes, np.int64), _sizes(case, ROWS - held, len(epochs)), "ceil(rows / step) steps an epoch"),
        ledger("steps and epochs", _numbers(steps), _numbers_wanted(case, ROWS - held, len(epochs)), "counted over all epochs"),
        *_resumed(whole, resumed, case.start),
        *_difficulties(case, epochs),
        *_shuffled(case, epochs, _epochs(others), false_alarm),
    ]


def _epochs(steps: Sequence[ShownStep]) -> list[list[int]]:
    """The rows of each epoch, in order."""
    return [samples_of([step for step in steps if step.epoch == epoch]) for epoch in sorted({step.epoch for step in steps})]


def _counts(back: Sequence[int]) -> np.ndarray:
    return np.array([len(back), len(set(back))], np.int64)


def _sizes(case: OrderCase, rows: int, epochs: int) -> np.ndarray:
    return np.array([min(case.size, rows - start) for start in range(0, rows, case.size)] * epochs, np.int64)


def _numbers(steps: Sequence[ShownStep]) -> np.ndarray:
    return np.array([(step.number, step.epoch) for step in steps], np.int64)


def _numbers_wanted(case: OrderCase, rows: int, epochs: int) -> np.ndarray:
    in_epoch = -(-rows // case.size)
    return np.array([(number, number // in_epoch) for number in range(in_epoch * epochs)], np.int64)


def _resumed(whole: Arrays, resumed: Arrays, start: int) -> list[Comparison]:
    """Steps, and what they learn from, of the rest of a run."""
    rest, shown = [step for step in steps_of(whole) if step.number >= start], steps_of(resumed)
    pairs = ((_numbers(shown), _numbers(rest)), (np.array(samples_of(shown), np.int64), np.array(samples_of(rest), np.int64)))
    names = (f"steps from {start} on", f"rows from step {start} on")
    return [ledger(name, one, other, _RESUMED) for name, (one, other) in zip(names, pairs, strict=True)]


def _difficulties(case: OrderCase, epochs: Sequence[Sequence[int]]) -> list[Comparison]:
    if not case.difficulty:
        return []
    of = [_UNKNOWN if (known := DIFFICULTY[number % 4]) is None else known for number in range(ROWS)]
    shown = np.array([of[row] for epoch in epochs for row in epoch], np.int64)
    wanted = np.array([rank for epoch in epochs for rank in sorted(of[row] for row in epoch)], np.int64)
    return [ledger("difficulties", shown, wanted, "rising, rows without one last")]


def _shuffled(
    case: OrderCase, epochs: Sequence[Sequence[int]], others: Sequence[Sequence[int]], false_alarm: float
) -> list[Comparison]:  # fmt: skip
    """Orders that are independent of each other leave few rows where they were; of a file's own order likewise."""
    if case.difficulty:  # most rows keep their place then
        distinct = len({tuple(epoch) for epoch in epochs})
        return [ledger("orders that differ", np.array([distinct], np.int64), np.array([len(epochs)], np.int64), "a new one each epoch")]
    before = [list(range(ROWS)), *epochs]
    pairs = [*zip(before, epochs, strict=False), *zip(epochs, others, strict=False)]
    matches = sum(one == other for first, second in pairs for one, other in zip(first, second, strict=False))
    most = policy.most_matches(len(pairs), false_alarm)
    return [verdict.at_most("rows that stay in place", float(matches), float(most), "rows", _MATCHES)]
