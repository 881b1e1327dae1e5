"""Sequences of one token: right stacks pass; what goes wrong there alone is seen there alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from contract.worker.process import StackProcess
from parity.checks import registry
from parity.checks.check import Answered, Case, Check, Question
from parity.judge.verdict import Comparison
from parity.reference.graph import Batch
from tests.parity.graph_stack import CAPABILITIES, GraphStack

CHECKS = [check for check in registry.CHECKS if check.id.endswith("_one_token")]


class Forward(GraphStack):
    """One that answers logits without labels, and adds `wrong` to them where there is one token."""

    def __init__(self, name: str, wrong: float = 0.0) -> None:
        super().__init__(name)
        self._wrong = wrong

    def _forward(self, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert set(tensors) == {"ids"}
        ids = tensors["ids"]
        padded = np.concatenate([ids, ids], axis=1)  # labels that count, for a loss that nobody asks for
        trace = self._oracle().graph(Batch(ids=padded, labels=padded), keep=lambda name: name == "logits")
        return {"logits": self._rounded("logits", trace.taps["logits"][:, :1] + self._wrong)}


def judged(check: Check, case: Case, question: Question, dtype: str, *stacks: Forward) -> list[Comparison]:
    plan = next(plan for plan in check.plans if (plan.question, plan.dtype) == (question, dtype))
    (ask,) = plan.requests(case)
    answered = []
    for stack in stacks:
        answer = ask.send(cast(StackProcess, stack)).result().tensors
        ask.require(stack.name, answer)
        answered.append(Answered(stack=stack.name, capabilities=CAPABILITIES, answers=[answer]))
    return plan.judge(case, answered, 1e-9)


def test_each_architecture_has_one_and_two_are_left_to_nightly() -> None:
    assert [check.id for check in CHECKS] == [f"c.{name}_one_token" for name in ("llama", "mistral", "qwen2", "qwen3", "gpt2")]
    assert {check.id for check in CHECKS if check.nightly} == {"c.mistral_one_token", "c.qwen2_one_token"}


@pytest.mark.parametrize("check", [CHECKS[0], CHECKS[-1]], ids=lambda check: check.id)
def test_right_stacks_pass_and_wrong_ones_fail(check: Check) -> None:
    assert check.fixed_cases is not None
    (case,) = check.fixed_cases()
    right, wrong = Forward("right"), Forward("wrong", wrong=1e-11)
    for dtype in ("float64", "float32"):
        (comparison,) = judged(check, case, Question.PRECISION, dtype, right)
        assert comparison.passed
        assert comparison.controls.caught == comparison.controls.applied > 0
    assert all(one.passed for one in judged(check, case, Question.SAME_FUNCTION, "float64", right, right))
    assert not any(one.passed for one in judged(check, case, Question.SAME_FUNCTION, "float64", right, wrong))
    assert not any(one.passed for one in judged(check, case, Question.PRECISION, "float64", wrong))
    assert not any(one.passed for one in judged(check, case, Question.PRECISION, "float64", Forward("wrong", wrong=np.nan)))
