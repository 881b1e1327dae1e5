"""Tier D: what both stacks take from the contract, held against others' programs, papers and laws (docs/theory.md, The shared policy).

Each stack shows what its own process takes: two that share a mistake are equal, and both wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from parity.checks import policy_batches, policy_numbers, policy_order, policy_schedule, policy_text
from parity.checks.check import Case, Check, GraphNeeds, Judge, Plan, Question
from parity.checks.policy_case import asks

_NOT_APPLICABLE = {
    Question.SAME_FUNCTION: "both stacks share it, so that comparing them proves nothing; each is held against others' answers",
    Question.FAST_PATH: "there is one path",
}
_NEEDS = GraphNeeds(model_types=("llama",), session=True, requests=("policy",))

_BREAKS = "a label or position off by one, a border of rows, an epoch's tail, a schedule counted in micro-batches, a seed that is not used"


def _check(
    id_: str, title: str, cases: Callable[[], Iterator[Case]], count: int, judge: Judge, *, bound: str, statistical: int = 0
) -> Check:  # fmt: skip
    plan = Plan(question=Question.PRECISION, dtype="float64", requests=asks, judge=judge, statistical=statistical, graph=_NEEDS)
    return Check(
        id=id_, tier="D", title=title, operations=(), plans=(plan,), not_applicable=_NOT_APPLICABLE, cases=None, fixed_cases=cases,
        fixed_count=count, bound=bound, theory="docs/theory.md, The shared policy", breaks=_BREAKS,
    )  # fmt: skip


CHECKS: tuple[Check, ...] = (
    _check(
        "d.policy_text", "shared policy: templates, ids, labels and truncation, against transformers and TRL", policy_text.cases,
        policy_text.count(), policy_text.judge, bound="none: ids and labels of other programs, token for token",
    ),
    _check(
        "d.policy_batches", "shared policy: padding, packing, positions and accumulation, against TRL and by laws", policy_batches.cases,
        3, policy_batches.judge, bound="none: another program's rows, token for token; first fit by its definition",
    ),
    _check(
        "d.policy_order", "shared policy: the order of rows over epochs, held-back rows, where a run goes on", policy_order.cases,
        3, policy_order.judge, statistical=1, bound="none for the laws; Chernoff's for the rows that stay in place",
    ),
    _check(
        "d.policy_schedule", "shared policy: the learning rate of every step, against transformers and by the formula",
        policy_schedule.cases, policy_schedule.COUNT, policy_schedule.judge,
        bound="none against transformers' numbers; the rounding of either way to write the formula",
    ),
    _check(
        "d.policy_adapter", "shared policy: the initial adapter, by its documented bits, and as PEFT draws it",
        policy_numbers.adapter_cases, 1, policy_numbers.judge_adapter, statistical=policy_numbers.ADAPTER_STATISTICAL,
        bound="none for the documented bits; Massart's for distributions",
    ),
    _check(
        "d.policy_random", "shared policy: dropout's masks and the numbers that tokens are drawn with", policy_numbers.numbers_cases, 1,
        policy_numbers.judge_numbers, statistical=policy_numbers.NUMBERS_STATISTICAL,
        bound="none for the documented bits; Hoeffding's for shares",
    ),
)  # fmt: skip
