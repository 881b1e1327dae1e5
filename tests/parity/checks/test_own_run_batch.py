"""A user's micro-batch, cut: what is left is real, says where it is from, and has something to learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.data.batches import PADDING, Batch, collate
from contract.data.row import IGNORE_INDEX, Example
from contract.model.layout import LlamaLayout
from contract.worker import graph
from contract.worker.plan import GraphPlan, Lora
from parity.checks import own_run_batch
from parity.checks.own_run_batch import AFFORDABLE, FEWEST, ROWS, RUNS, affordable, cut, multiply_adds

LAYOUT = LlamaLayout(
    vocab_size=1000, hidden_size=20, intermediate_size=50, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
    max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=1e4, attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
)  # fmt: skip


def example(sample: int, asked: int, learned: int) -> Example:
    """A row whose ids count up, so that a part of it tells where it is from; what is learned stands at its end."""
    ids = np.arange(asked + learned) + 100 * (sample + 1)
    return Example(ids=ids, labels=np.where(np.arange(len(ids)) < asked, IGNORE_INDEX, ids), sample=sample)


def batch(*sequences: Sequence[tuple[int, int]]) -> Batch:
    """Sequences of rows (asked, learned)."""
    numbers = iter(range(20))
    return collate([[example(next(numbers), *row) for row in sequence] for sequence in sequences], pad_id=7)


def test_what_is_affordable_is_not_cut() -> None:
    whole = batch([(3, 4)], [(2, 2)])
    part = cut(whole, 14)
    assert part.told == "all of its 2 x 7 tokens"
    assert np.array_equal(part.batch.ids, whole.ids_BT)
    assert np.array_equal(part.batch.labels, whole.labels_BT)
    assert part.batch.positions is None, "as a run leaves them out"
    assert part.batch.segments is None


def test_a_window_about_the_first_label() -> None:
    part = cut(batch([(40, 10)], [(2, 30)], [(1, 1)]), 16)
    assert part.told == "2 of 3 rows, 8 of 50 tokens of each, from token 36, 0 on"
    assert part.batch.ids.tolist() == [list(range(136, 144)), list(range(200, 208))]
    assert part.batch.positions is not None
    assert part.batch.positions[0].tolist() == list(range(36, 44)), "tokens keep their places"
    assert (part.batch.labels[0] == IGNORE_INDEX).tolist() == [True] * 4 + [False] * 4


def test_a_window_about_the_border_of_two_rows() -> None:
    part = cut(batch([(10, 10), (10, 10)]), 8)
    assert part.batch.segments is not None
    assert part.batch.positions is not None
    assert part.batch.segments.tolist() == [[0] * 4 + [1] * 4]
    assert part.batch.positions.tolist() == [[16, 17, 18, 19, 0, 1, 2, 3]]
    assert part.batch.labels.tolist() == [[IGNORE_INDEX, 117, 118, 119, *[IGNORE_INDEX] * 4]]


@given(
    rows=st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3), min_size=1, max_size=4),
    tokens=st.integers(ROWS * FEWEST, 200),
)
def test_every_cut_can_be_asked(rows: list[list[tuple[int, int]]], tokens: int) -> None:
    """No more than is affordable; labels that count in each row, each the id that stands there; a batch that a graph takes."""
    whole = batch(*rows)
    part = cut(whole, tokens).batch
    assert part.ids.size <= tokens
    counts = part.labels[:, 1:] != IGNORE_INDEX
    assert counts.any(axis=1).all()
    assert np.array_equal(part.labels[:, 1:][counts], part.ids[:, 1:][counts])
    plan = GraphPlan(layout=LAYOUT, dtype="float64", lora=Lora(rank=1, alpha=1.0))
    graph.require_batch(plan, part.ids, part.labels, part.positions, part.segments)
    if any(len(row) > 1 for row in rows):
        assert part.segments is not None
    if part.segments is not None:
        assert part.positions is not None
        real = part.segments != PADDING
        assert np.isin(part.ids[real], whole.ids_BT).all()


def test_what_the_reference_affords() -> None:
    plan = GraphPlan(layout=LAYOUT, dtype="float64", lora=Lora(rank=1, alpha=1.0))
    per_block = 20 * (24 + 12 + 12) + 24 * 20 + 3 * 20 * 50
    assert multiply_adds(plan) == 2 * (3 * per_block + 1000 * 20)
    assert affordable(plan) == int(AFFORDABLE / (RUNS * multiply_adds(plan)))
    huge = plan.model_copy(update={"layout": LAYOUT.model_copy(update={"hidden_size": 20_000, "intermediate_size": 10**6})})
    assert affordable(huge) == ROWS * FEWEST
    proxy = GraphPlan(
        graph="qlora_proxy_v1", layout=LAYOUT.model_copy(update={"head_dim": 5}), dtype="float64", lora=Lora(rank=1, alpha=1.0),
        middle_blocks=2,
    )  # fmt: skip
    assert multiply_adds(proxy) == 2 * (2 * 20 * 20 + 1000 * 20)


def test_a_run_without_a_token_to_learn() -> None:
    class Nothing:
        def steps(self) -> list[object]:
            return []

    with pytest.raises(ValueError, match="no token to learn"):
        own_run_batch.first(Nothing(), 100, 2)  # type: ignore[arg-type]
