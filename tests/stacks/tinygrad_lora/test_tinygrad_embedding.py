"""The tinygrad stack's embedding: rows bit for bit, gradients summed over the places of an id."""

from __future__ import annotations

import numpy as np
import pytest

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, ask

IDS = np.array([10, 0, 3, 3, 0, 3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_copied_bit_for_bit(stack: StackProcess, dtype: str) -> None:
    weight = np.random.default_rng(1).standard_normal((11, 6)).astype(dtype)
    weight[0, :3] = -0.0, np.inf, np.finfo(dtype).smallest_subnormal
    answer = ask(stack, "embedding", {"weight": weight, "ids": IDS})
    assert answer["y"].tobytes() == weight[IDS].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_repeated_id_gets_the_sum_of_its_places(stack: StackProcess, dtype: str) -> None:
    generator = np.random.default_rng(2)
    bar = generator.integers(-9, 10, (6, 6)).astype(dtype)
    wanted = np.zeros((11, 6))
    np.add.at(wanted, IDS, bar)
    answer = ask(stack, "embedding", {"weight": generator.standard_normal((11, 6)).astype(dtype), "ids": IDS, "y_bar": bar})
    np.testing.assert_array_equal(answer["weight_grad"], wanted)


@pytest.mark.parametrize("wrong", [-1, 11])
def test_an_id_outside_of_the_vocabulary_is_refused(stack: StackProcess, wrong: int) -> None:
    with pytest.raises(RequestFailed, match=rf"ids\[2\] is {wrong}; allowed: 0 to 10") as caught:
        ask(stack, "embedding", {"weight": np.ones((11, 6), np.float32), "ids": np.array([0, 1, wrong, 3, 4, 5])})
    assert caught.value.error_class == "ValueError"
