"""The learning rate's schedule, bit for bit against transformers, and how many steps a run has.

The catalogue of known bugs is met here with: scheduler-steps-per-microbatch (a step counts optimiser steps), warmup-first-step-zero-lr (the
first step of a warm-up has learning rate 0, as transformers has it: a choice, and pinned).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ContractError
from contract.run.schedule import check_warmup, learning_rate, learning_rates, optimizer_steps
from parity import goldens

GOLDEN = json.loads((Path(goldens.__file__).with_name("schedule.json")).read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['base']}-{case['warmup']}-{case['total']}")
def test_golden(case: dict[str, Any]) -> None:
    rates = learning_rates(case["base"], case["warmup"], case["total"])
    assert (rates.shape, rates.dtype) == ((case["total"],), np.float64)
    assert {step: rates[int(step)] for step in case["rates"]} == case["rates"]


def test_the_golden_cases_reach_the_edges() -> None:
    cases = [(case["warmup"], case["total"]) for case in GOLDEN["cases"]]
    assert any(warmup == 0 for warmup, _ in cases)
    assert any(warmup == total > 1 for warmup, total in cases)
    assert {(0, 1), (1, 1)} <= set(cases)


@given(base=st.floats(1e-12, 1e3), total=st.integers(1, 400), share=st.floats(0, 1))
def test_it_rises_to_the_base_and_falls_to_nothing(base: float, total: int, share: float) -> None:
    warmup = int(share * total)
    rates = learning_rates(base, warmup, total)
    assert (np.diff(rates[: warmup + 1]) > 0).all()
    assert (np.diff(rates[warmup:]) <= 0).all()
    assert rates.min() >= 0
    if warmup < total:
        assert rates.max() == rates[warmup] == base
        assert learning_rate(total, base, warmup, total) == learning_rate(total + 5, base, warmup, total) == 0
    if warmup:
        assert rates[0] == 0
    assert [learning_rate(step, base, warmup, total) for step in range(total)] == rates.tolist()


@pytest.mark.parametrize(("warmup", "total", "place"), [(6, 5, "exec.warmup_steps"), (1, 0, "exec.epochs"), (0, 0, "exec.epochs")])
def test_a_warmup_over_the_total_is_refused(warmup: int, total: int, place: str) -> None:
    for refused in (lambda: check_warmup(warmup, total), lambda: learning_rates(1e-3, warmup, total)):
        with pytest.raises(ContractError) as caught:
            refused()
        assert caught.value.place == place


@pytest.mark.parametrize(
    ("rows", "batch_size", "grad_accum", "epochs", "steps"),
    [(0, 4, 4, 3, 0), (1, 4, 4, 3, 3), (16, 4, 4, 1, 1), (17, 4, 4, 1, 2), (17, 4, 4, 3, 6), (15, 2, 3, 2, 6), (10**7, 4, 4, 3, 1_875_000)],
)
def test_optimizer_steps(rows: int, batch_size: int, grad_accum: int, epochs: int, steps: int) -> None:
    assert optimizer_steps(rows, batch_size, grad_accum, epochs) == steps
