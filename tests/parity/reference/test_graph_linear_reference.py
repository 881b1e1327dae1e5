"""A graph's linear with dropout against the primitive's reference, which has hard bounds; and matrices that differ by run."""

from __future__ import annotations

import numpy as np
import pytest

from parity.reference.graph_linear import Dropout, LoraLinear, scaling
from parity.reference.graph_operations import Constants, product
from parity.reference.lora_linear import lora_linear
from parity.reference.rounding import Exact
from parity.reference.running_error import REFERENCE
from parity.reference.tape import Kind, Tape

TOKENS, INNER, RANK, OUT = 5, 7, 3, 4
S = scaling(RANK, 2.5, rslora=True)
EXACT = 0.5
"""A scaling whose products are exact."""


def evaluated(
    tensors: dict[str, np.ndarray], keep: np.ndarray | None, share: float, matrices: tuple[np.ndarray, np.ndarray], s: float = S
) -> dict[str, np.ndarray]:
    """y and gradients, with a leading axis of runs; the tokens are one sequence."""
    found: dict[str, np.ndarray] = {}

    def see(kind: Kind, name: str, value: np.ndarray) -> None:
        found[name if kind == "tap" else f"{name}_{kind}"] = value

    noise = Exact()
    tape = Tape("layers.0", noise, see, overrides={}, bars={"q_proj": tensors["y_bar"][None, None]})
    x_PBTI = tape.enter(tensors["x"][None, None])
    dropout = None if keep is None else Dropout(keep=lambda path, width: keep[None], probability=share)
    linear = LoraLinear(
        name="q_proj", input="input", weight_OI=tensors["weight"], bias_O=None, lora_a_RI=matrices[0], lora_b_OR=matrices[1], scaling=s,
        constants=Constants(noise), path="layers.0.q_proj", dropout=dropout,
    )  # fmt: skip
    _, low = linear.forward(tape, x_PBTI)
    linear.backward(tape, x_PBTI, low)
    tape.leave()
    return found


def drawn() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    sizes = {"x": (TOKENS, INNER), "weight": (OUT, INNER), "lora_a": (RANK, INNER), "lora_b": (OUT, RANK), "y_bar": (TOKENS, OUT)}
    return {name: rng.standard_normal(size) for name, size in sizes.items()}


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_it_is_the_primitive_with_dropout_and_without(share: float) -> None:
    tensors = drawn()
    keep = np.random.default_rng(8).random((TOKENS, INNER)) >= share if share else None
    given = tensors | ({} if keep is None else {"keep": keep})
    wanted = lora_linear(given, {"alpha": 2.5, "rslora": True, "dropout": share}, REFERENCE)
    found = evaluated(tensors, keep, share, (tensors["lora_a"], tensors["lora_b"]))
    names = {"y": "q_proj", "x_grad": "input_grad", "lora_a_grad": "q_proj.lora_a_grad", "lora_b_grad": "q_proj.lora_b_grad"}
    for theirs, ours in names.items():
        one = wanted[theirs]
        assert np.all(np.abs(found[ours].reshape(one.value.shape) - one.value) <= 2 * one.error), theirs
        assert one.value.any()


def test_a_run_with_matrices_of_its_own_is_that_run_alone() -> None:
    """Integers, so that every sum is exact in any order."""
    rng = np.random.default_rng(4)
    tensors = {name: rng.integers(-8, 9, array.shape).astype(np.float64) for name, array in drawn().items()}
    several = rng.integers(-8, 9, (3, RANK, INNER)).astype(np.float64), rng.integers(-8, 9, (3, OUT, RANK)).astype(np.float64)
    together = evaluated(tensors, None, 0.0, several, EXACT)
    for run in range(3):
        alone = evaluated(tensors, None, 0.0, (several[0][run], several[1][run]), EXACT)
        for name, value in alone.items():
            whole = np.broadcast_to(together[name], (3, *value.shape[1:]))[run]
            assert np.array_equal(whole, value[0]), name


def test_a_product_of_runs_is_one_each() -> None:
    rng = np.random.default_rng(6)
    x, weights = (rng.integers(-99, 99, shape).astype(np.float64) for shape in ((1, 2, 3, 5), (4, 5, 6)))
    together = product(x, weights)
    assert together.shape == (4, 2, 3, 6)
    for run in range(4):
        assert np.array_equal(together[run], product(x, weights[run])[0])
