"""The rules by which two programs' numbers are usually held against each other, each as its source states it.

A rule takes an answer of the stack that has the bug, or of the first stack, and the other stack's. NaN and infinities are held as each
source holds them; but on loss curves, where Megatron-LM's comparison lets a NaN pass, one that stands on one side alone is a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

ASSERT_CLOSE = {"bfloat16": (1.6e-2, 1e-5), "float16": (1e-3, 1e-5), "float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}
"""(rtol, atol) by dtype; of every other dtype (0, 0). https://docs.pytorch.org/docs/stable/testing.html, torch 2.13.0."""

LOSS_RELATIVE, LOSS_ABSOLUTE = 0.01, 1e-6
"""LM_LOSS_RELATIVE_TOLERANCE and LM_LOSS_ABSOLUTE_TOLERANCE of NVIDIA/Megatron-LM,
tests/functional_tests/python_test_utils/test_grpo_training_loop.py: a step's loss against the golden run's, by the golden run's size, and
absolutely where that is zero to within the second number."""

_EPSILON = float(np.finfo(np.float64).eps)
"""What Polygraphy puts in place of a zero that it would divide by."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    name:   of the table's column.
    says:   when it fails.
    source: whose practice it is.
    fails:  (answer, other stack's answer), of one shape and dtype -> where it fails, element by element.
    """

    name: str
    says: str
    source: str
    fails: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def sees(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether it fails anywhere; another shape or dtype is a difference to every rule."""
        if first.shape != second.shape or first.dtype != second.dtype:
            return True
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            return bool(np.any(self.fails(first, second)))


def assert_close(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|first - second| > atol + rtol |second|, by the dtype's defaults; NaN is equal to nothing, an infinity to itself alone."""
    rtol, atol = ASSERT_CLOSE.get(first.dtype.name, (0.0, 0.0))
    return _beyond(first, second, rtol, atol, equal_nan=False)


def within(rtol: float, atol: float, *, equal_nan: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """|first - second| > atol + rtol |second|, of any dtype; equal_nan: NaN is equal to NaN."""
    return lambda first, second: _beyond(first, second, rtol, atol, equal_nan=equal_nan)


def polygraphy(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|first - second| > 1e-5 and |first - second| / |second| > 1e-5, NaN counting as over: the default of CompareFunc.simple, elemwise."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    absolute = np.abs(one - other)
    relative = absolute / np.abs(np.where(other == 0, _EPSILON, other))
    apart: np.ndarray = ((absolute > 1e-5) | np.isnan(absolute)) & ((relative > 1e-5) | np.isnan(relative))
    return apart


def curves(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Steps [S] at which two loss curves lie more than 1 % apart, by the second's size."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    near_zero = np.abs(other) < LOSS_ABSOLUTE
    apart: np.ndarray = np.where(near_zero, np.abs(one) > LOSS_ABSOLUTE, np.abs(one - other) / np.abs(other) > LOSS_RELATIVE)
    apart |= (np.isnan(one) != np.isnan(other)) | (np.isinf(one) != np.isinf(other))
    return apart


def _beyond(first: np.ndarray, second: np.ndarray, rtol: float, atol: float, *, equal_nan: bool) -> np.ndarray:
    one, other = first.astype(np.float64), second.astype(np.float64)
    close: np.ndarray = (one == other) | (np.isfinite(one) & np.isfinite(other) & (np.abs(one - other) <= atol + rtol * np.abs(other)))
    if equal_nan:
        close |= np.isnan(one) & np.isnan(other)
    apart: np.ndarray = np.logical_not(close)
    return apart


RULES: Sequence[Rule] = (
    Rule(
        name="assert_close", says="|a - b| > 1e-5 + 1.3e-6 |b| (bfloat16: 1e-5 + 1.6e-2 |b|; integers: any difference)",
        source="defaults of torch.testing.assert_close (https://docs.pytorch.org/docs/stable/testing.html)", fails=assert_close,
    ),
    Rule(
        name="rtol 1e-3", says="|a - b| > 1e-7 + 1e-3 |b|",
        source="defaults of torch.onnx.verification.VerificationOptions "
        "(https://pytorch.org/docs/stable/generated/torch.onnx.verification.VerificationOptions.html)",
        fails=within(1e-3, 1e-7, equal_nan=True),
    ),
    Rule(
        name="atol 1e-3", says="|a - b| > 1e-3 + 1e-5 |b|",
        source="torch.allclose(original_output, output, atol=1e-3), by which transformers has a new model's outputs verified "
        "(https://github.com/huggingface/transformers/blob/main/docs/source/en/add_new_model.md)",
        fails=within(1e-5, 1e-3, equal_nan=False),
    ),
    Rule(
        name="Polygraphy", says="|a - b| > 1e-5 and |a - b| > 1e-5 |b|",
        source="defaults of CompareFunc.simple, error statistic elemwise "
        "(https://docs.nvidia.com/deeplearning/tensorrt/polygraphy/docs/comparator/compare_func.html)",
        fails=polygraphy,
    ),
)  # fmt: skip
"""The rules on tensors."""

CURVES = Rule(
    name="loss curves", says="a step's losses lie over 1 % apart",
    source="LM_LOSS_RELATIVE_TOLERANCE of Megatron-LM's functional tests (https://github.com/NVIDIA/Megatron-LM/blob/main/"
    "tests/functional_tests/python_test_utils/test_grpo_training_loop.py)",
    fails=curves,
)  # fmt: skip
"""The rule on the losses of a run, step by step."""

EVERY: Sequence[Rule] = (*RULES, CURVES)

COMPARED = tuple(np.dtype(dtype) for dtype in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64, np.uint8))
"""Dtypes that rules are asked of: numbers that a stack computes, and NF4's codes. The gate's own ledgers (ids, counts) are left out."""
