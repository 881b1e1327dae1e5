"""Two captures of the same requests, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from contract.worker.answers import Answer
from parity.capture import store
from parity.capture.store import Recorded


class TensorBits(BaseModel):
    """One tensor of a check's answers, over all examples.

    Attributes:
        differ: elements whose bits differ (signs of zeros and payloads of NaN count).
        nan: elements that are NaN in one answer and not in the other.
        ulp: the largest distance of two others in spacings of their dtype, as if all numbers were counted through from -inf to inf, both
            zeros being one; of integers the largest difference.
        reshaped: answers whose tensor has another shape or dtype, or is there in one alone; their elements are not counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: str
    check: str
    tensor: str
    dtype: str
    elements: int
    differ: int
    nan: int
    ulp: int
    reshaped: int

    @property
    def same(self) -> bool:
        """Whether every answer has the same bits."""
        return self.differ == 0 and self.reshaped == 0


@dataclass
class Bits:
    """What two captures' answers are alike in.

    tensors:    each tensor by check, name and dtype
    unmatched:  what was answered in one and not in the other, in words; a line a check
    """

    tensors: list[TensorBits] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def compare(old: Path, new: Path, check_id: str, stack: str) -> Bits:
    """One check's answers in two captures.

    Raises:
        UserError: a file is not sound.
    """
    found, alone, counted = Bits(), list[str](), dict[tuple[str, str], list[TensorBits]]()
    numbers = {int(path.stem) for folder in (old, new) for path in (folder / check_id).glob("*.safetensors") if path.stem.isdecimal()}
    for number in sorted(numbers):
        sides = [store.read_example(store.path_of(folder, check_id, number), stack) for folder in (old, new)]
        before, after = sides
        if before is None or after is None or before.digest != after.digest:
            alone.append(f"example {number}: another input, or not asked")
            continue
        _example((stack, check_id), number, before, after, alone, counted)
    if alone:
        found.unmatched.append(f"{stack} {check_id}: {len(alone)} answers in one environment alone, the first of {alone[0]}")
    found.tensors += [_together(several) for several in counted.values()]
    return found


def _example(
    of: tuple[str, str], number: int, before: Recorded, after: Recorded, alone: list[str], counted: dict[tuple[str, str], list[TensorBits]]
) -> None:
    for ordinal in sorted({*before.outcomes, *after.outcomes}):
        one, other = before.outcomes.get(ordinal), after.outcomes.get(ordinal)
        if not isinstance(one, Answer) or not isinstance(other, Answer):
            if isinstance(one, Answer) or isinstance(other, Answer):
                failed = next((str(side) for side in (one, other) if isinstance(side, Exception)), "not asked")
                alone.append(f"example {number}: {failed.splitlines()[0]}")
            continue
        for name in sorted({*one.tensors, *other.tensors}):
            bits = _tensor(of, name, one.tensors.get(name), other.tensors.get(name))
            counted.setdefault((name, bits.dtype), []).append(bits)


def _tensor(of: tuple[str, str], name: str, old: np.ndarray | None, new: np.ndarray | None) -> TensorBits:
    stack, check_id = of
    if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
        dtype = next(array.dtype.name for array in (old, new) if array is not None)
        return TensorBits(stack=stack, check=check_id, tensor=name, dtype=dtype, elements=0, differ=0, nan=0, ulp=0, reshaped=1)
    unsigned = np.dtype(f"u{old.dtype.itemsize}")
    first, second = (np.ascontiguousarray(array).reshape(-1) for array in (old, new))
    changed = first.view(unsigned) != second.view(unsigned)
    one, other = first[changed], second[changed]
    floats = old.dtype.kind not in "iub"  # ml_dtypes' bfloat16 is of the kind V
    nans = np.isnan(one).astype(int) + np.isnan(other) if floats else np.zeros(one.shape, int)
    numbers = nans == 0
    distance = _distance(one[numbers], other[numbers]) if floats else _difference(one, other)
    return TensorBits(
        stack=stack, check=check_id, tensor=name, dtype=old.dtype.name, elements=old.size, differ=int(changed.sum()),
        nan=int((nans == 1).sum()), ulp=distance, reshaped=0,
    )  # fmt: skip


def _distance(one: np.ndarray, other: np.ndarray) -> int:
    """The largest distance of two floating-point numbers, counted in numbers of their dtype; 0 of none."""
    if one.size == 0:
        return 0
    bits = 8 * one.dtype.itemsize
    unsigned, sign = np.dtype(f"u{one.dtype.itemsize}"), 1 << (bits - 1)
    first, second = (array.view(unsigned).astype(np.uint64) for array in (one, other))
    sizes = [array & np.uint64(sign - 1) for array in (first, second)]
    same_sign = (first ^ second) < np.uint64(sign)
    larger, smaller = np.maximum(*sizes), np.minimum(*sizes)
    return int(np.where(same_sign, larger - smaller, larger + smaller).max())


def _difference(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two integers; 0 of none."""
    return max((abs(int(a) - int(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)), default=0)


def _together(several: list[TensorBits]) -> TensorBits:
    first = several[0]
    return TensorBits(
        stack=first.stack, check=first.check, tensor=first.tensor, dtype=first.dtype, elements=sum(one.elements for one in several),
        differ=sum(one.differ for one in several), nan=sum(one.nan for one in several), ulp=max(one.ulp for one in several),
        reshaped=sum(one.reshaped for one in several),
    )  # fmt: skip
