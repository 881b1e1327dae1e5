"""Embedding: rows bit for bit, the gradient of repeated ids, refusals in words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stacks.torch_qlora.torch_compute import DTYPES, computed, drawn

V, D = 9, 6
IDS = np.array([0, 8, 3, 3, 0, 3, 5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_copied_bit_for_bit(dtype: str) -> None:
    weight = drawn(0, V, D, dtype=dtype)
    weight[0, :3] = -0.0, float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    got = computed("embedding", {}, {"weight": weight, "ids": IDS}, dtype)["y"]
    assert got.tobytes() == weight.astype(dtype)[IDS].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_gets_the_sum_over_the_places_of_its_id(dtype: str) -> None:
    bar = np.random.default_rng(1).integers(-99, 100, (len(IDS), D)).astype(np.float64)
    got = computed("embedding", {}, {"weight": drawn(0, V, D), "ids": IDS, "y_bar": bar}, dtype)["weight_grad"]
    exact = np.zeros((V, D))
    np.add.at(exact, IDS, bar)
    np.testing.assert_array_equal(got, exact)
    assert not got[[1, 2, 4, 6, 7]].any()


@pytest.mark.parametrize("wrong", [V, -1, -100, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(wrong: int) -> None:
    ids = IDS.copy()
    ids[4] = wrong
    with pytest.raises(ValueError, match=rf"embedding: ids\[4\] is {wrong}; allowed are 0 to {V - 1} .the weight has {V} rows"):
        computed("embedding", {}, {"weight": drawn(0, V, D), "ids": ids}, "float32")
