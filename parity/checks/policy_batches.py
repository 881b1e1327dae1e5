"""Rows in micro-batches: padding, packing and accumulation, against TRL's collator and by laws."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.checks import policy_files, policy_text
from parity.checks.check import Answered, Case
from parity.checks.policy_case import PADDING, UNSUPERVISED, PolicyCase, ShownBatch, ShownStep, samples_of, steps_of
from parity.checks.trajectory_judges import ledger
from parity.judge.verdict import Comparison
from parity.reference import policy

WINDOW = 64
"""Sequences that packing holds open at once (docs/contract.md)."""

_SEQ_LEN = 160
_ROWS = 70
"""So many that packing closes a sequence while others are open: they are the golden rows over and over, longer than half of seq_len."""

_LAW = "law: what a row is does not depend on how rows are cut into micro-batches"
_SHAPE = "each sequence is its rows one after the other, then padding"
_FIT = "first fit over the unpacked run's order (parity/reference/policy.py)"


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchesCase(PolicyCase):
    """A run that packs, and one that has its rows one by one.

    rows: what another program's collator makes of a row, by its number: ids, labels, positions. pad: the id that it fills up with.
    sizes: of the packing run: sequences of a micro-batch, micro-batches of a step.
    """

    rows: Mapping[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
    pad: int
    sizes: tuple[int, int]
    seq_len: int
    packing: bool


def cases() -> Iterator[BatchesCase]:
    """Padded, packed, and packed so that the window of open sequences is full; each also accumulated otherwise."""
    batches = policy_text.text()["batches"]
    rows = _rows(batches)
    yield _case("padded, pad = end of sequence", batches, rows, range(len(rows)), packing=False, seq_len=_SEQ_LEN, sizes=(4, 1))
    yield _case("packed", batches, rows, [*range(len(rows))] * 3, packing=True, seq_len=_SEQ_LEN, sizes=(2, 2))
    longest = max(range(len(rows)), key=lambda number: len(rows[number][0]))
    yield _case(
        "packed, window full", batches, rows, [longest] * _ROWS + [*range(len(rows))], packing=True,
        seq_len=len(rows[longest][0]) + min(len(row[0]) for row in rows), sizes=(3, 2),
    )  # fmt: skip


def _rows(batches: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """TRL's collator on each row: ids and labels of the padded batch where it attends, positions of the one without padding."""
    padded, found, start = batches["padded"], [], 0
    for ids, labels, attends in zip(padded["input_ids"], padded["labels"], padded["attention_mask"], strict=True):
        length = sum(attends)
        positions = batches["packed"]["position_ids"][start : start + length]
        own = np.array(labels[:length], np.int64)
        own[0] = UNSUPERVISED
        found.append((np.array(ids[:length], np.int64), own, np.array(positions, np.int64)))
        start += length
    return found


def _case(
    name: str, batches: Mapping[str, Any], rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], chosen: Sequence[int], *,
    packing: bool, seq_len: int, sizes: tuple[int, int],
) -> BatchesCase:  # fmt: skip
    folder = tempfile.TemporaryDirectory(prefix="twostack-policy-")
    home, titles = Path(folder.name), batches["dialogues"]
    policy_files.write(home, [{"messages": policy_text.text()["dialogues"][titles[number]]} for number in chosen])
    common = {"seq_len": seq_len, "epochs": 2}
    one_by_one = {**common, "batch_size": 1, "grad_accum": 1}
    in_batches = {**common, "batch_size": sizes[0], "grad_accum": sizes[1], "packing": packing}
    otherwise = {**in_batches, "batch_size": sizes[1], "grad_accum": sizes[0]}
    asked = [policy_files.asked(policy_files.contract(home, exec=exec_)) for exec_ in (in_batches, one_by_one, otherwise)]
    return BatchesCase(
        name=name, inputs={}, folder=folder, asked=tuple(asked), rows={at: rows[number] for at, number in enumerate(chosen)},
        pad=batches["pad"], sizes=sizes, seq_len=seq_len, packing=packing,
    )  # fmt: skip


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Every row as TRL has it wherever it stands; sequences by first fit; steps of so many; every supervised token counted once."""
    assert isinstance(case, BatchesCase)
    cut, one_by_one, otherwise = (steps_of(answer) for answer in answered[0].answers)
    counted = [sum(int((row.labels[1:] != UNSUPERVISED).sum()) for row in step.rows()) for step in cut]
    told = [step.tokens for step in cut]
    return [
        *_rows_are_theirs(case, cut),
        *_shapes(case, [batch for step in cut for batch in step.batches]),
        *_sequences(case, cut, one_by_one),
        ledger("tokens of each step", np.array(told, np.int64), np.array(counted, np.int64), "the supervised tokens of its rows"),
        _same_steps("rows of each step, accumulated otherwise", cut, otherwise),
    ]


def _rows_are_theirs(case: BatchesCase, steps: Sequence[ShownStep]) -> list[Comparison]:
    shown = [row for step in steps for row in step.rows()]
    found = []
    for at, part in enumerate(("ids", "labels", "positions")):
        observed = [getattr(row, part) for row in shown]
        wanted = [case.rows[row.sample][at] if row.sample in case.rows else np.zeros(0, np.int64) for row in shown]
        found.append(ledger(part, np.concatenate(observed), np.concatenate(wanted), policy_text.source()))
    return found


def _shapes(case: BatchesCase, batches: Sequence[ShownBatch]) -> list[Comparison]:
    """Lengths, segments that count up, and padding after them: its id, its label, its position."""
    observed: dict[str, list[np.ndarray]] = {name: [] for name in ("lengths", "segments", "samples", "padding")}
    wanted: dict[str, list[np.ndarray]] = {name: [] for name in observed}
    for batch in batches:
        for at, rows in enumerate(batch.sequences()):
            lengths = [len(case.rows[row.sample][0]) if row.sample in case.rows else 0 for row in rows]
            rest = batch.ids.shape[1] - sum(lengths)
            observed["lengths"].append(batch.lengths[at : at + 1])
            wanted["lengths"].append(np.array([sum(lengths)], np.int64))
            for name, numbers in (("segments", range(len(rows))), ("samples", [row.sample for row in rows])):
                observed[name].append(getattr(batch, name)[at])
                wanted[name].append(np.array([*np.repeat(list(numbers), lengths), *[PADDING] * rest], np.int64))
            after = np.stack([getattr(batch, name)[at, sum(lengths) :] for name in ("ids", "labels", "positions")])
            observed["padding"].append(after.reshape(-1))
            wanted["padding"].append(np.repeat(np.array([case.pad, UNSUPERVISED, 0], np.int64), rest))
    return [ledger(name, np.concatenate(observed[name]), np.concatenate(wanted[name]), _SHAPE) for name in observed]


def _sequences(case: BatchesCase, steps: Sequence[ShownStep], one_by_one: Sequence[ShownStep]) -> list[Comparison]:
    """Which rows stand in which sequence, micro-batch and step, epoch by epoch; rows are told apart by a separator."""
    lengths = {sample: len(row[0]) for sample, row in case.rows.items()}
    observed, wanted = [], []
    for epoch in sorted({step.epoch for step in one_by_one}):
        order = samples_of([step for step in one_by_one if step.epoch == epoch])
        groups = policy.first_fit(order, lengths, case.seq_len, WINDOW) if case.packing else [(row,) for row in order]
        size, accumulated = case.sizes
        micro = [groups[at : at + size] for at in range(0, len(groups), size)]
        wanted.append(_spelt([micro[at : at + accumulated] for at in range(0, len(micro), accumulated)]))
    for epoch in sorted({step.epoch for step in steps}):
        shown = [
            [[tuple(row.sample for row in rows) for rows in batch.sequences()] for batch in step.batches]
            for step in steps if step.epoch == epoch
        ]  # fmt: skip
        observed.append(_spelt(shown))
    how = _FIT if case.packing else "the order of the run that has its rows one by one"
    return [ledger("rows of sequences", np.concatenate(observed), np.concatenate(wanted), how)]


def _spelt(steps: Sequence[Sequence[Sequence[tuple[int, ...]]]]) -> np.ndarray:
    """Numbers of rows, and after each sequence, micro-batch and step -1, -2 and -3."""
    found: list[int] = []
    for step in steps:
        for batch in step:
            for sequence in batch:
                found += [*sequence, -1]
            found.append(-2)
        found.append(-3)
    return np.array(found, np.int64)


def _same_steps(name: str, one: Sequence[ShownStep], other: Sequence[ShownStep]) -> Comparison:
    """Both learn the same rows and count the same tokens in each step."""
    first, second = (
        np.concatenate([np.array([step.tokens, *samples_of([step]), -1], np.int64) for step in steps]) for steps in (one, other)
    )  # fmt: skip
    return ledger(name, second, first, _LAW)
