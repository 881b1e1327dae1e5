"""Batches and steps: every cell of a rectangle, the ledger of samples, the loss' denominator, and a run that goes on where it stopped.

The catalogue of known bugs is met here with: eos-masked-because-pad-is-eos, padding-trained-as-targets, loss-counts-one-pad-per-row,
packed-flatten-cross-target, ga-tail-dropped-and-leaks, resume-resets-epoch-order; labels-not-shifted is the stacks' to avoid, for whom
labels[t] is ids[t].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data.batches import PADDING, Batch, collate, supervised
from contract.data.order import HeldBack, Shuffled, Split
from contract.data.row import IGNORE_INDEX, Example
from contract.data.steps import Examples, Step, Steps
from contract.run.schedule import optimizer_steps

EOS = 2


def example(sample: int, ids: list[int], prompt: int = 1) -> Example:
    labels = [IGNORE_INDEX] * prompt + ids[prompt:]
    return Example(sample=sample, ids=np.array(ids, np.int32), labels=np.array(labels, np.int32))


def test_a_padded_batch_cell_by_cell() -> None:
    """A true token with id 0, a pad id that is the end of text, and labels that reach to it."""
    batch = collate([[example(7, [5, 0, 6, EOS], prompt=2)], [example(3, [0, EOS])]], pad_id=EOS)
    assert batch.ids_BT.tolist() == [[5, 0, 6, EOS], [0, EOS, EOS, EOS]]
    assert batch.labels_BT.tolist() == [[-100, -100, 6, EOS], [-100, EOS, -100, -100]]
    assert batch.lengths_B.tolist() == [4, 2]
    assert batch.attention_BT.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch.segments_BT.tolist() == [[0] * 4, [0, 0, -1, -1]]
    assert batch.samples_BT.tolist() == [[7] * 4, [3, 3, -1, -1]]
    assert (batch.samples, batch.tokens) == (((7,), (3,)), 3)
    assert {array.dtype for array in vars(batch).values()} == {np.dtype(np.int64)}


def test_a_packed_batch_cell_by_cell() -> None:
    """The first token of a segment is no target, even where its own row would have it be one: another row's token would predict it."""
    segments = [example(7, [5, 0, EOS], prompt=0), example(3, [8, EOS], prompt=0), example(9, [4], prompt=0)]
    batch = collate([segments, [example(1, [6, EOS])]], pad_id=0, width=7)
    assert batch.ids_BT.tolist() == [[5, 0, EOS, 8, EOS, 4, 0], [6, EOS, 0, 0, 0, 0, 0]]
    assert batch.labels_BT.tolist() == [[-100, 0, EOS, -100, EOS, -100, -100], [-100, EOS, -100, -100, -100, -100, -100]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 1, 1, 2, -1], [0, 0, -1, -1, -1, -1, -1]]
    assert batch.lengths_B.tolist() == [6, 2]
    assert (batch.samples, batch.tokens) == (((7, 3, 9), (1,)), 4)


EXAMPLES = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).flatmap(
        lambda ids: st.integers(0, len(ids)).map(lambda prompt: (ids, prompt)),
    ),
    min_size=1,
    max_size=8,
).map(lambda drawn: [example(10 + at, ids, prompt) for at, (ids, prompt) in enumerate(drawn)])


def targets(batch: Batch) -> Counter[tuple[int, int, int, int]]:
    """What the loss sees: (sample, position, token before, target), from the rectangle alone."""
    rows, columns = np.nonzero(batch.labels_BT[:, 1:] != IGNORE_INDEX)
    assert (batch.segments_BT[rows, columns] == batch.segments_BT[rows, columns + 1]).all()
    arrays = (batch.samples_BT[rows, columns + 1], batch.positions_BT[rows, columns + 1], batch.ids_BT[rows, columns])
    return Counter(zip(*(array.tolist() for array in (*arrays, batch.labels_BT[rows, columns + 1])), strict=True))


@given(examples=EXAMPLES, cut=st.integers(0, 7), pad_id=st.integers(0, 5), spare=st.integers(0, 3))
def test_packed_padded_and_separate_rows_have_the_same_targets(examples: list[Example], cut: int, pad_id: int, spare: int) -> None:
    wanted: Counter[tuple[int, int, int, int]] = Counter()
    for one in examples:
        for at in range(1, len(one.ids)):
            if one.labels[at] != IGNORE_INDEX:
                wanted[one.sample, at, int(one.ids[at - 1]), int(one.labels[at])] += 1
    packed = [part for part in (examples[:cut], examples[cut:]) if part]
    longest = max(sum(len(one.ids) for one in part) for part in packed)
    for batch in (collate([[one] for one in examples], pad_id), collate(packed, pad_id, width=longest + spare)):
        assert targets(batch) == wanted
        assert batch.tokens == sum(map(supervised, examples)) == wanted.total()
        assert (batch.attention_BT.sum(axis=1) == batch.lengths_B).all()
        assert (batch.labels_BT[~batch.attention_BT] == IGNORE_INDEX).all()
        assert (batch.ids_BT[~batch.attention_BT] == pad_id).all()
        assert sum(batch.samples, ()) == tuple(one.sample for one in examples)


def test_a_sequence_longer_than_the_batch_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match="a sequence has 5 tokens, the batch 4"):
        collate([[example(0, [1, 2, 3]), example(1, [1, 2])]], 0, width=4)


def row_example(row: int) -> Example | None:
    """Ragged rows; every seventh has nothing to learn, in one way or the other."""
    if row % 7 == 5:
        return None if row % 2 else example(row, [1, 2, 3], prompt=3)
    return example(row, [row % 3] * (2 + row % 5))


def each(one: Callable[[int], Example | None]) -> Examples:
    return lambda rows: [one(row) for row in rows]


def steps_of(count: int, *, share: float = 0, seed: int = 5, **changes: Any) -> Steps:
    options = {"batch_size": 2, "grad_accum": 3, "epochs": 2, "pad_id": 0, "seq_len": 8} | changes
    return Steps(Shuffled(Split(count, share, seed), seed), each(row_example), **options)


def ledger(step: Step) -> tuple[Any, ...]:
    """All that a step holds, in values that compare."""
    arrays = [[array.tolist() for array in vars(batch).values()] for batch in step.batches]
    return step.number, step.epoch, step.tokens, step.skipped, arrays


OPTIONS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 4),
        "grad_accum": st.integers(1, 3),
        "epochs": st.integers(1, 3),
        "packing": st.booleans(),
        "pad_to": st.sampled_from(["longest", "seq_len"]),
    }
)


@given(count=st.integers(1, 40), share=st.sampled_from([0, 0.3]), options=OPTIONS)
def test_each_epoch_holds_every_row_once(count: int, share: float, options: dict[str, Any]) -> None:
    steps = steps_of(count, share=share, **options)
    run = list(steps.steps())
    assert [step.number for step in run] == list(range(steps.total))
    training = sorted(Split(count, share, 5).training_rows(np.arange(Split(count, share, 5).training)).tolist())
    for epoch in range(options["epochs"]):
        of_epoch = [step for step in run if step.epoch == epoch]
        assert len(of_epoch) == steps.in_epoch(epoch)
        rows = [row for step in of_epoch for batch in step.batches for row in sum(batch.samples, ())]
        skipped = [row for step in of_epoch for row in step.skipped]
        if of_epoch:
            assert sorted(rows + skipped) == training
        assert all(row % 7 == 5 for row in skipped)
        assert not any(row % 7 == 5 for row in rows)
        for step in of_epoch:
            assert len(step.batches) <= options["grad_accum"]
            assert all(len(batch.ids_BT) <= options["batch_size"] for batch in step.batches)
            assert step.tokens == sum(targets(batch).total() for batch in step.batches)
            if options["pad_to"] == "seq_len":
                assert all(batch.ids_BT.shape[1] == 8 for batch in step.batches)
    if not options["packing"]:
        assert steps.total == optimizer_steps(len(training), options["batch_size"], options["grad_accum"], options["epochs"])


@given(count=st.integers(1, 40), options=OPTIONS, start=st.integers(0, 60))
def test_a_run_goes_on_where_it_stopped(count: int, options: dict[str, Any], start: int) -> None:
    whole = [ledger(step) for step in steps_of(count, **options).steps()]
    assert [ledger(step) for step in steps_of(count, **options).steps(start)] == whole[start:]


def test_a_trailing_step_stands_for_itself() -> None:
    """15 rows in micro-batches of 2, 3 to a step: 6, 6 and 3 rows in each epoch, the last 3 in two micro-batches."""
    order = Shuffled(Split(15, 0, 1), 1)
    options: dict[str, Any] = {"batch_size": 2, "grad_accum": 3, "epochs": 2, "pad_id": 0, "seq_len": 20}
    run = list(Steps(order, each(lambda row: example(row, [1] * (2 + row))), **options).steps())
    assert [[len(batch.ids_BT) for batch in step.batches] for step in run] == [[2, 2, 2], [2, 2, 2], [2, 1]] * 2
    for step in run:
        rows = [row for batch in step.batches for row in sum(batch.samples, ())]
        assert step.tokens == sum(1 + row for row in rows)
    orders = [[batch.samples for step in run if step.epoch == epoch for batch in step.batches] for epoch in range(2)]
    assert orders[0] != orders[1]


def test_steps_of_rows_without_anything_to_learn_are_empty_and_keep_their_number() -> None:
    run = list(
        Steps(Shuffled(Split(5, 0, 1), 1), each(lambda row: None), batch_size=2, grad_accum=1, epochs=1, pad_id=0, seq_len=8).steps()
    )
    assert [(step.number, step.tokens, step.batches, len(step.skipped)) for step in run] == [(0, 0, (), 2), (1, 0, (), 2), (2, 0, (), 1)]
    assert steps_of(6, epochs=1, packing=True, batch_size=1, grad_accum=1).total == len(
        list(steps_of(6, epochs=1, packing=True, batch_size=1, grad_accum=1).steps())
    )


def test_packing_asks_for_each_row_once_to_measure_it_and_once_an_epoch_to_use_it() -> None:
    asked: Counter[int] = Counter()

    def counted(row: int) -> Example | None:
        asked[row] += 1
        return example(row, [1, 2, 3])

    steps = Steps(
        Shuffled(Split(20, 0, 1), 1),
        each(counted),
        batch_size=2,
        grad_accum=2,
        epochs=3,
        pad_id=0,
        seq_len=9,
        packing=True,
        pad_to="seq_len",
    )
    assert steps.total == 6
    assert set(asked.values()) == {1}
    widths = {batch.ids_BT.shape[1] for step in steps.steps() for batch in step.batches}
    assert (widths, set(asked.values())) == ({9}, {4})
    assert len(list(steps.steps(5))) == 1
    assert asked.total() == 4 * 20 + 8


def test_rows_held_back_come_in_one_order() -> None:
    split = Split(30, 0.4, 9)
    steps = Steps(HeldBack(split), each(lambda row: example(row, [1, 2])), batch_size=5, grad_accum=1, epochs=2, pad_id=0, seq_len=8)
    samples = [batch.samples for step in steps.steps() for batch in step.batches]
    assert len(samples) == 6
    assert samples[:3] == samples[3:]


def test_padding_is_no_sample() -> None:
    assert PADDING < 0
