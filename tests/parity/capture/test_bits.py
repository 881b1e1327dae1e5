"""Bits of two answers: what differs, and by how many numbers of the dtype."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from contract.worker.answers import Answer, HarnessError
from parity.capture import bits, store
from parity.capture.bits import TensorBits
from parity.capture.store import Outcome, Recorded

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def compared(tmp_path: Path, old: dict[int, Outcome], new: dict[int, Outcome], digests: tuple[str, str] = ("d", "d")) -> bits.Bits:
    for name, outcomes, digest in (("old", old, digests[0]), ("new", new, digests[1])):
        store.write_example(store.path_of(tmp_path / name, "a.x", 0), Recorded(case="c", digest=digest, outcomes=outcomes), "one")
    return bits.compare(tmp_path / "old", tmp_path / "new", "a.x", "one")


def tensor(tmp_path: Path, old: np.ndarray, new: np.ndarray) -> TensorBits:
    (found,) = compared(tmp_path, {0: Answer({}, {"y": old})}, {0: Answer({}, {"y": new})}).tensors
    return found


@pytest.mark.parametrize("dtype", [np.dtype("float16"), BFLOAT16, np.dtype("float32"), np.dtype("float64")], ids=str)
def test_floats_are_counted_through(tmp_path: Path, dtype: np.dtype) -> None:
    """Bit patterns written by hand: the third is 5 away, the fourth crosses zero from the second smallest to the smallest."""
    sign = 1 << (8 * dtype.itemsize - 1)
    old = np.array([10, 20, 30, 2, sign, 0], f"u{dtype.itemsize}").view(dtype)
    new = np.array([10, 21, 25, sign | 1, 0, sign], f"u{dtype.itemsize}").view(dtype)
    found = tensor(tmp_path, old, new)
    assert (found.elements, found.differ, found.ulp, found.nan, found.dtype) == (6, 5, 5, 0, dtype.name)
    assert tensor(tmp_path, old[3:], new[3:]).ulp == 3
    assert tensor(tmp_path, old[4:], new[4:]).ulp == 0, "two zeros are one number, and other bits"


def test_the_farthest_two_numbers_are_counted(tmp_path: Path) -> None:
    found = tensor(tmp_path, np.array([-np.inf]), np.array([np.inf]))
    assert found.ulp == 2 * int(np.array([np.inf]).view(np.uint64)[0])


def test_a_nan_in_one_is_told_and_has_no_distance(tmp_path: Path) -> None:
    other_nan = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
    old = np.array([np.nan, np.nan, 1, 1], np.float32)
    new = np.array([np.nan, other_nan, np.nan, 1], np.float32)
    found = tensor(tmp_path, old, new)
    assert (found.differ, found.nan, found.ulp) == (2, 1, 0)
    assert tensor(tmp_path, old, old).same


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integers_differ_by_their_difference(tmp_path: Path, dtype: str) -> None:
    found = tensor(tmp_path, np.array([0, 1, 1], dtype), np.array([0, 0, 1], dtype))
    assert (found.differ, found.ulp) == (1, 1)


def test_another_shape_is_told(tmp_path: Path) -> None:
    found = tensor(tmp_path, np.zeros(3), np.zeros((3, 1)))
    assert (found.reshaped, found.elements, found.same) == (1, 0, False)
    found = tensor(tmp_path, np.zeros(3), np.zeros(3, np.float32))
    assert found.reshaped == 1


def test_a_scalar_has_one_element(tmp_path: Path) -> None:
    found = tensor(tmp_path, np.zeros(()), np.ones(()))
    assert (found.elements, found.differ) == (1, 1)


def test_a_tensor_is_counted_over_all_requests(tmp_path: Path) -> None:
    old: dict[int, Outcome] = {number: Answer({}, {"y": np.array([1.0, 2.0])}) for number in range(3)}
    new: dict[int, Outcome] = {**old, 2: Answer({}, {"y": np.nextafter(np.array([1.0, 2.0]), 9)})}
    (found,) = compared(tmp_path, old, new).tensors
    assert (found.elements, found.differ, found.ulp) == (6, 2, 1)


def test_an_error_in_one_is_unmatched_and_in_both_is_not(tmp_path: Path) -> None:
    failed, answer = HarnessError("one: died\nits last words"), Answer({}, {"y": np.zeros(1)})
    assert compared(tmp_path, {0: failed}, {0: failed}) == bits.Bits()
    (text,) = compared(tmp_path, {0: failed}, {0: answer}).unmatched
    assert text == "one a.x: 1 answers in one environment alone, the first of example 0: one: died"


def test_another_input_is_not_compared(tmp_path: Path) -> None:
    answer: dict[int, Outcome] = {0: Answer({}, {"y": np.zeros(1)})}
    found = compared(tmp_path, answer, answer, ("d", "e"))
    assert found.tensors == []
    assert found.unmatched
