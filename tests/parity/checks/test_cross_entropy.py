"""What the checks of cross-entropy draw."""

from __future__ import annotations

import numpy as np
import pytest

from parity.checks import cross_entropy
from parity.checks.check import Check
from tests.parity.checks.test_strategies import drawn_cases

PLAIN, SPECIAL = cross_entropy.CHECKS


@pytest.mark.parametrize("check", cross_entropy.CHECKS, ids=lambda check: check.id)
def test_ignored_rows_of_each_kind_are_drawn(check: Check) -> None:
    cases = drawn_cases(check, 150)
    ignored = {(case.attrs["ignore_index"], bool(np.any(case.inputs["float32"]["labels"] == case.attrs["ignore_index"]))) for case in cases}
    assert {(-100, True), (-1, True), (0, True), (-100, False)} <= ignored
    assert {case.attrs["reduction"] for case in cases} == {"sum", "mean"}
    supervised = set()
    for case in cases:
        labels = case.inputs["float32"]["labels"]
        kept = labels != case.attrs["ignore_index"]
        assert kept.any()
        assert np.all((labels[kept] >= 0) & (labels[kept] < case.inputs["float32"]["logits"].shape[1]))
        supervised.add((int(kept.sum()), len(kept)))
    assert (1, 7) in supervised, "all rows but one ignored"


def test_every_kind_of_logits_is_drawn() -> None:
    kinds = {case.name.split("), ")[1].split(",")[0] for case in drawn_cases(PLAIN, 150)}
    assert kinds == set(cross_entropy.LOGITS)


def test_a_forbidden_token_is_never_the_label() -> None:
    alone, first_column_of_ignored = 0, set()
    for case in drawn_cases(SPECIAL, 60):
        for tensors in case.inputs.values():
            logits, kept = tensors["logits"], tensors["labels"] != case.attrs["ignore_index"]
            assert np.isneginf(logits).any()
            assert np.isfinite(logits).any(axis=1).all()
            assert np.isfinite(logits[kept, tensors["labels"][kept]]).all()
            alone += int(np.any(np.isfinite(logits).sum(axis=1) == 1))
            first_column_of_ignored |= set(np.isfinite(logits[~kept, 0]).tolist())
    assert alone > 0, "a row whose label is all that is allowed"
    assert first_column_of_ignored == {False, True}, "-inf where a stack puts label 0 in the place of ignore_index"


def test_the_first_and_the_last_column_of_the_widest_logits_are_labels() -> None:
    wide = [case.inputs["float32"]["labels"] for case in drawn_cases(PLAIN, 60) if case.inputs["float32"]["logits"].shape[1] == 2048]
    assert {0, 2047} <= set(np.concatenate(wide).tolist())
