"""Each law of whole graphs is broken by a stack that is wrong in a way of its own, and kept by one that is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import numpy as np
import pytest

from contract.worker.process import StackProcess
from parity.checks import graph_law_checks, graph_laws
from parity.checks.check import Answered, Check
from parity.checks.graph_case import GraphCase
from parity.checks.graph_draws import Draw
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.judge.verdict import Comparison
from tests.parity.graph_stack import CAPABILITIES, GraphStack, with_lora

Arrays = dict[str, np.ndarray]
Break = Callable[[Mapping[str, np.ndarray], Arrays], Arrays]
LITTLE = 1e-9
LEAST = 1e-15


@cache
def check_of(check_id: str) -> tuple[Check, GraphCase]:
    """A law's check, and one case for all tests: its reference is worked out once."""
    check = next(check for check in graph_law_checks.checks() if check.id == check_id)
    recipes = (OPTIONS if check_id.endswith("packed") else PLAIN)[check_id.split("_")[1]]
    (case,) = Draw(recipes=recipes[:1]).each()
    return check, case


class Lawless(GraphStack):
    """The reference, but for what is done to its answers, which may follow from the request."""

    def __init__(self, broken: Break, **how: Any) -> None:
        super().__init__("lawless", **how)
        self._broken = broken

    def _gradients(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Arrays:
        return self._broken({**self._tensors, **tensors}, super()._gradients(values, tensors))


def verdicts(check_id: str, stack: GraphStack) -> list[Comparison]:
    check, case = check_of(check_id)
    (plan,) = check.plans
    answers = [ask.send(cast(StackProcess, stack)).result().tensors for ask in plan.requests(case)]
    return plan.judge(case, [Answered(stack=stack.name, capabilities=CAPABILITIES, answers=answers)], 1e-6)


def broken_laws(check_id: str, stack: GraphStack) -> set[str]:
    return {one.tensor.partition(": ")[0] for one in verdicts(check_id, stack) if not one.passed}


def right(given: Mapping[str, np.ndarray], answer: Arrays) -> Arrays:
    return answer


def scaled(name: str, by: Callable[[Mapping[str, np.ndarray]], Any]) -> Break:
    """One tensor is off by a factor that follows from the request."""
    return lambda given, answer: {**answer, **({name: answer[name] * (1 + by(given))} if name in answer else {})}


@pytest.mark.parametrize("check_id", ["c.law_gpt2", "c.law_mistral_packed"])
def test_a_right_stack_keeps_every_law(check_id: str) -> None:
    found = verdicts(check_id, Lawless(right))
    assert all(one.passed for one in found)
    laws = graph_laws.PACKED_LAWS if check_id.endswith("packed") else graph_laws.LAWS
    assert {one.tensor.partition(": ")[0] for one in found} == {law.name for law in laws}
    assert all(one.controls.caught == one.controls.applied > 0 for one in found)


def by_row(given: Mapping[str, np.ndarray]) -> np.ndarray:
    return LITTLE * np.arange(len(given["ids"]))[:, None, None]


def by_last_token(given: Mapping[str, np.ndarray]) -> float:
    return LEAST * float(given["ids"][0, -1])


def by_batch(given: Mapping[str, np.ndarray]) -> float:
    return LITTLE * len(given["ids"])


def where_b_is_zero(given: Mapping[str, np.ndarray]) -> float:
    matrices = [array for name, array in given.items() if name.endswith("lora_b")]
    return LEAST if matrices and not any(matrix.any() for matrix in matrices) else 0.0


A_GRADIENT = "grad.layers.1.q_proj.lora_b"


@pytest.mark.parametrize(
    ("law", "stack"),
    [
        ("sequences permuted", lambda: Lawless(scaled("logits", by_row))),
        ("another future", lambda: Lawless(scaled("layers.1.output", by_last_token))),
        ("sequences one by one", lambda: Lawless(scaled(A_GRADIENT, by_batch))),
        ("sequences one by one", lambda: Lawless(scaled("loss", by_batch))),
        ("B = 0 is the base", lambda: Lawless(scaled("logits", where_b_is_zero))),
        ("alpha doubled, B halved", lambda: Lawless(right, change=lambda plan: with_lora(alpha=plan.lora.alpha**1.0001)(plan))),
    ],
)  # fmt: skip
def test_each_law_is_broken_by_a_mistake_of_its_own(law: str, stack: Callable[[], GraphStack]) -> None:
    assert law in broken_laws("c.law_gpt2", stack())


def by_width(given: Mapping[str, np.ndarray]) -> float:
    return LITTLE * given["ids"].shape[1]


def by_what_fills(given: Mapping[str, np.ndarray]) -> float:
    segments = given.get("segments")
    return 0.0 if segments is None else LEAST * float(given["ids"][segments == -1].sum())


def by_segments(given: Mapping[str, np.ndarray]) -> float:
    return LITTLE * float(given["segments"].max()) if "segments" in given else 0.0


@pytest.mark.parametrize(
    ("law", "stack"),
    [
        ("padded on the right", lambda: Lawless(scaled(A_GRADIENT, by_width))),
        ("padded on the left", lambda: Lawless(scaled("layers.1.q_rope", by_width))),
        ("other padding", lambda: Lawless(scaled("logits", by_what_fills))),
        ("packed into one", lambda: Lawless(scaled("layers.1.context", by_segments))),
        ("packed into one", lambda: Lawless(scaled("loss", by_segments))),
    ],
)  # fmt: skip
def test_each_law_of_packing_is_broken_by_a_mistake_of_its_own(law: str, stack: Callable[[], GraphStack]) -> None:
    assert law in broken_laws("c.law_mistral_packed", stack())
