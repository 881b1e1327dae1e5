"""What the embedding's checks draw."""

from __future__ import annotations

import numpy as np
import pytest

from parity.checks import embedding
from parity.checks.check import Check
from tests.parity.checks.test_strategies import drawn_cases


@pytest.mark.parametrize("check", embedding.CHECKS, ids=lambda check: check.id)
def test_ids_repeat_and_hold_both_ends(check: Check) -> None:
    for case in drawn_cases(check, 60):
        for arrays in case.inputs.values():
            ids, rows = arrays["ids"], len(arrays["weight"])
            assert ids.dtype == np.int64
            assert {0, rows - 1} <= set(ids)
            assert ids.max() < rows
            assert len(set(ids)) < len(ids)


def test_integers_add_up_exactly_even_where_all_ids_are_the_same() -> None:
    longest = max(tokens for _, _, tokens in embedding.SHAPES)
    assert longest * 2 ** embedding.EXACT_BITS["float32"] <= 2**24
    assert longest * 2 ** embedding.EXACT_BITS["float64"] <= 2**53
