"""The order of rows: a bijection, close to uniform, new in each epoch; the same rows held back throughout; easier rows first."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contract.data import curriculum, philox
from contract.data.curriculum import EasiestFirst, training_order
from contract.data.index import RowIndex, open_index
from contract.data.order import HeldBack, Permutation, Shuffled, Split
from contract.errors import ContractError
from contract.run.spec import DataSpec
from parity.judge.confidence import FALSE_ALARM

KEYS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


def whole(permutation: Permutation) -> list[int]:
    return permutation.at(np.arange(permutation.count)).tolist()


@pytest.mark.parametrize("count", [*range(70), 255, 256, 257, 1023, 1024, 4097])
def test_every_row_once(count: int) -> None:
    for epoch in range(3):
        assert sorted(whole(Permutation(count, philox.key_of("order", 9, epoch)))) == list(range(count))


@given(count=st.integers(1, 2**40), key=KEYS, start=st.integers(0, 2**40), size=st.integers(1, 300))
def test_a_stretch_of_a_large_order_has_no_row_twice_and_none_outside(count: int, key: philox.Key, start: int, size: int) -> None:
    positions = np.arange(start % count, min(start % count + size, count))
    rows = Permutation(count, key).at(positions)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == len(positions)
    assert 0 <= rows.min() <= rows.max() < count


@given(count=st.integers(1, 500), key=KEYS, draw=st.data())
def test_a_row_does_not_depend_on_what_else_is_asked(count: int, key: philox.Key, draw: st.DataObject) -> None:
    asked = draw.draw(st.lists(st.integers(0, count - 1), max_size=8), label="positions")
    order = whole(Permutation(count, key))
    assert Permutation(count, key).at(np.array(asked, np.int64)).tolist() == [order[at] for at in asked]


@pytest.mark.parametrize("count", [3, 4])
def test_every_order_of_a_few_rows_is_as_likely(count: int) -> None:
    """Chi-squared over all orders, 12 expected of each, which the network's parity is too weak to show; the keys are fixed."""
    orders = list(itertools.permutations(range(count)))
    seen = Counter(tuple(whole(Permutation(count, philox.key_of("order", 42, epoch)))) for epoch in range(12 * len(orders)))
    assert stats.chisquare([seen[order] for order in orders]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("count", [8, 15, 16, 31, 63, 127])
def test_a_network_is_an_even_permutation(count: int) -> None:
    """As the description says: 4 to 7 bits, so halves of equal and of unequal length; a cycle of even length is odd."""
    for epoch in range(8):
        permutation = Permutation(count, philox.key_of("order", 42, epoch))
        size = 2 ** count.bit_length()
        image = permutation._network(np.arange(size)).tolist()
        waiting, even_cycles = set(range(size)), 0
        while waiting:
            length, at = 0, waiting.pop()
            while (at := image[at]) in waiting:
                waiting.remove(at)
                length += 1
            even_cycles += length % 2  # the first one was not counted
        assert even_cycles % 2 == 0


def table(count: int, epochs: int) -> np.ndarray:
    """How often each row stood at each place."""
    seen = np.zeros((count, count), np.int64)
    for epoch in range(epochs):
        np.add.at(seen, (np.arange(count), whole(Permutation(count, philox.key_of("order", 42, epoch)))), 1)
    return seen


def test_every_row_is_as_likely_at_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared over rows and places, whose margins are fixed: (count - 1)^2 degrees of freedom. A network too short fails it."""

    def pvalue() -> float:
        seen = table(20, 200)
        expected = seen.sum() / seen.size
        return float(stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), (len(seen) - 1) ** 2))

    assert pvalue() > FALSE_ALARM
    monkeypatch.setattr("contract.data.order._ROUNDS", 2)
    assert pvalue() < FALSE_ALARM


def split_rows(split: Split) -> tuple[list[int], list[int]]:
    return split.training_rows(np.arange(split.training)).tolist(), split.validation_rows(np.arange(split.validation)).tolist()


@given(count=st.integers(1, 400), share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**63 - 1))
def test_a_split_parts_the_rows(count: int, share: float, seed: int) -> None:
    split = Split(count, share, seed)
    training, held = split_rows(split)
    assert sorted(training + held) == list(range(count))
    assert len(held) == (0 if share == 0 or count == 1 else min(max(int(share * count), 1), count - 1))
    assert split_rows(Split(count, share, seed)) == (training, held)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(1, 0.9, 0), (2, 0.01, 1), (100, 0.05, 5), (119, 0.05, 5), (10, 0.999, 9), (50, 0, 0)]
)
def test_how_many_are_held_back(count: int, share: float, held: int) -> None:
    assert Split(count, share, 3).validation == held


def test_rows_held_back_follow_from_the_seed() -> None:
    chosen = [frozenset(split_rows(Split(1000, 0.1, seed))[1]) for seed in range(20)]
    assert len(set(chosen)) == len(chosen)


@given(count=st.integers(2, 100), share=st.sampled_from([0, 0.05, 0.5]), seed=st.integers(0, 2**63 - 1))
def test_each_epoch_has_the_same_rows_to_learn_from_and_those_held_back_stay(count: int, share: float, seed: int) -> None:
    split = Split(count, share, seed)
    training, held = split_rows(split)
    shuffled, back = Shuffled(split, seed), HeldBack(split)
    for epoch in (0, 5):
        assert sorted(shuffled.rows(epoch, np.arange(shuffled.count)).tolist()) == sorted(training)
        assert back.rows(epoch, np.arange(back.count)).tolist() == held


def test_each_epoch_has_another_order_and_so_has_each_seed() -> None:
    orders = [
        tuple(Shuffled(Split(50, 0, seed), seed).rows(epoch, np.arange(50)).tolist()) for seed in (0, 1, 2**63 - 1) for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)


def test_orders_stay_as_they_are() -> None:
    """A run that is resumed after an update must find its order again: these values were made with this program and never change."""
    assert whole(Permutation(20, philox.key_of("order", 42, 0))) == [14, 17, 19, 8, 18, 3, 2, 1, 10, 7, 12, 4, 15, 5, 6, 11, 16, 13, 0, 9]
    assert Split(1000, 0.004, 42).validation_rows(np.arange(4)).tolist() == [401, 518, 279, 832]


def indexed(folder: Path, difficulties: list[float | None]) -> RowIndex:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "response": "r", "difficulty": value}) + "\n" for value in difficulties))
    return open_index(path, SPEC, cache=folder)


SPEC = DataSpec(train_file="train.jsonl", curriculum="difficulty")
DIFFICULTY = st.sampled_from([-1.5, -0.0, 0, 3, 1e308]) | st.none() | st.floats(-100, 100)


@given(
    difficulties=st.lists(DIFFICULTY, min_size=1, max_size=40).filter(lambda values: any(value is not None for value in values)),
    share=st.sampled_from([0, 0.2]),
    run=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_easier_rows_come_first_and_rows_without_a_difficulty_last(
    tmp_path_factory: pytest.TempPathFactory, difficulties: list[float | None], share: float, run: int, seed: int
) -> None:
    """However many runs it takes to sort them."""
    index = indexed(tmp_path_factory.mktemp("rows"), difficulties)
    split = Split(len(index), share, seed)
    rank = [float("inf") if value is None else value for value in difficulties]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curriculum, "_RUN", run)
        if all(rank[row] == float("inf") for row in split_rows(split)[0]):
            with pytest.raises(ContractError, match="no row has one"):
                EasiestFirst(index, split, seed)
            return
        order = EasiestFirst(index, split, seed)
    for epoch in (0, 3):
        rows = order.rows(epoch, np.arange(order.count)).tolist()
        assert sorted(rows) == sorted(split_rows(split)[0])
        assert [rank[row] for row in rows] == sorted(rank[row] for row in rows)
        some = range(0, order.count, 7)
        assert [rows[at] for at in some] == [int(order.rows(epoch, np.array([at]))[0]) for at in some]
    assert order.without == sum(rank[row] == float("inf") for row in split_rows(split)[0])


def test_rows_of_one_difficulty_change_places_each_epoch(tmp_path: Path) -> None:
    index = indexed(tmp_path, [2, 1] * 20)
    order = training_order(index, SPEC, Split(40, 0, 1), 1)
    epochs = [order.rows(epoch, np.arange(40)).tolist() for epoch in range(4)]
    assert len({tuple(rows[:20]) for rows in epochs}) == len({tuple(rows[20:]) for rows in epochs}) == 4
    assert all(sorted(rows[:20]) == list(range(1, 40, 2)) for rows in epochs)
    assert isinstance(training_order(index, SPEC.model_copy(update={"curriculum": "none"}), Split(40, 0, 1), 1), Shuffled)


@pytest.mark.parametrize("share", [0, 0.2])
def test_each_seed_has_an_order_of_its_own_within_a_difficulty_and_learns_from_its_own_rows(tmp_path: Path, share: float) -> None:
    """In one cache folder: what was sorted for one seed holds another's validation rows."""
    index = indexed(tmp_path, [1] * 40)
    orders = set()
    for seed in range(4):
        split = Split(40, share, seed)
        order = tuple(EasiestFirst(index, split, seed).rows(0, np.arange(split.training)).tolist())
        assert sorted(order) == sorted(split_rows(split)[0])
        orders.add(order)
    assert len(orders) == 4


def test_what_was_sorted_is_used_again_and_made_anew_where_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed(tmp_path, [3, 1, 2, None])
    split = Split(4, 0, 7)
    assert EasiestFirst(index, split, 7).rows(0, np.arange(4)).tolist() == [1, 2, 0, 3]
    [file] = tmp_path.glob("*.order")
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:40] + b"\xff" + whole_file[41:])
    assert EasiestFirst(index, split, 7).rows(0, np.arange(4)).tolist() == [1, 2, 0, 3]
    assert file.read_bytes() == whole_file
    monkeypatch.delattr(curriculum, "_sort")
    assert EasiestFirst(index, split, 7).rows(0, np.arange(4)).tolist() == [1, 2, 0, 3]


def test_another_train_file_is_sorted_anew(tmp_path: Path) -> None:
    split = Split(3, 0, 7)
    assert EasiestFirst(indexed(tmp_path, [3, 1, 2]), split, 7).rows(0, np.arange(3)).tolist() == [1, 2, 0]
    assert EasiestFirst(indexed(tmp_path, [1, 2, 3]), split, 7).rows(0, np.arange(3)).tolist() == [0, 1, 2]


def test_a_curriculum_without_difficulties_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no row has one") as caught:
        training_order(indexed(tmp_path, [None, None]), SPEC, Split(2, 0, 1), 1)
    assert caught.value.place == "data.curriculum"
