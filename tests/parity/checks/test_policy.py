"""The shared policy's checks: right answers pass, and each thing that an answer may have wrong fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from contract.worker.answers import ProtocolBroken
from parity.checks import policy, policy_batches, policy_numbers, policy_order, policy_schedule, policy_text
from parity.checks.check import Answered, Case
from parity.checks.policy_case import PolicyAsk, PolicyCase, asks, steps_of
from parity.judge.verdict import Comparison
from parity.report.record import Status
from tests.parity.policy_stack import CAPABILITIES, Arrays, PolicyStack, Spoil, ask

IDS = [check.id for check in policy.CHECKS]


@cache
def first(check_id: str) -> Case:
    """A check's cheapest case that shows everything."""
    at = {"d.policy_batches": 1, "d.policy_order": 1, "d.policy_schedule": 1}.get(check_id, 0)
    (check,) = (one for one in policy.CHECKS if one.id == check_id)
    assert check.fixed_cases is not None
    return [*check.fixed_cases()][at]


def test_every_check_passes_on_the_contract_and_its_controls_catch() -> None:
    for check in policy.CHECKS:
        result = ask(check.id, PolicyStack())
        assert result.status is Status.PASS, result.reason
        assert result.examples == check.fixed_count
        assert result.controls.caught == result.controls.applied > 0


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], *, only: int | None = None) -> Spoil:
    """One tensor of the answers, or of one of them."""

    def spoil(tensors: Arrays, number: int) -> Arrays:
        return tensors | {name: change(tensors[name])} if name in tensors and only in (None, number) else tensors

    return spoil


def one_more(tensor: np.ndarray) -> np.ndarray:
    """Its last element is one more."""
    tensor.reshape(-1)[-1] += 1
    return tensor


def one_bit(tensor: np.ndarray) -> np.ndarray:
    """Its last element is off by its last bit."""
    tensor.reshape(-1).view(np.uint8)[-tensor.itemsize] ^= 1
    return tensor


A_OF_LAST, B_OF_LAST = "initial.layers.1.down_proj.lora_a", "initial.layers.1.down_proj.lora_b"

SPOILT: list[tuple[str, Spoil, str]] = [
    ("d.policy_text", changed("ids", lambda ids: ids[::-1].copy()), "ids"),
    ("d.policy_text", changed("labels", lambda labels: np.where(labels == -100, labels, -100)), "labels"),
    ("d.policy_text", changed("skipped", lambda skipped: np.array([[0, 1]], np.int64)), "rows with nothing to learn"),
    ("d.policy_batches", changed("ids", one_more, only=0), "padding"),
    ("d.policy_batches", changed("positions", lambda positions: positions[::-1].copy(), only=0), "positions"),
    ("d.policy_batches", changed("lengths", one_more, only=0), "lengths"),
    ("d.policy_batches", changed("steps", lambda steps: steps + np.array([0, 0, 1, 0]), only=0), "tokens of each step"),
    ("d.policy_order", changed("steps", lambda steps: steps + np.array([1, 0, 0, 0]), only=0), "steps and epochs"),
    ("d.policy_order", changed("samples", lambda samples: np.where(samples == 4, 5, samples), only=0), "rows of each epoch, sorted"),
    ("d.policy_order", changed("samples", lambda samples: np.where(samples < 0, samples, samples[::-1]), only=1), "rows from step 5 on"),
    ("d.policy_order", changed("validation.samples", lambda samples: np.minimum(samples, 0)), "rows held back"),
    ("d.policy_schedule", changed("learning_rates", one_bit), "learning rates"),
    ("d.policy_schedule", changed("learning_rates", lambda rates: rates[:-1]), "steps"),
    ("d.policy_adapter", changed(B_OF_LAST, one_more), "B"),
    ("d.policy_adapter", changed(A_OF_LAST, one_bit), "A"),
    ("d.policy_adapter", changed(A_OF_LAST, lambda matrix: matrix[1:]), "shapes"),
    ("d.policy_random", changed("kept", lambda kept: ~kept, only=2), "masks"),
    ("d.policy_random", changed("u", one_bit), "drawn numbers"),
]


def failed(check_id: str, spoil: Spoil) -> set[str]:
    """The comparisons that a check's first case does not pass."""
    (check,) = (one for one in policy.CHECKS if one.id == check_id)
    case, stack = first(check_id), PolicyStack(spoil)
    answers = [asked.send(stack).result().tensors for asked in asks(case)]  # type: ignore[arg-type]
    answered = Answered(stack="fake", capabilities=CAPABILITIES, answers=answers)
    return {one.tensor for one in check.plans[0].judge(case, [answered], 1e-9) if not one.passed}


@pytest.mark.parametrize("check_id", IDS)
def test_nothing_is_seen_where_nothing_is_wrong(check_id: str) -> None:
    assert failed(check_id, lambda tensors, number: tensors) == set()


@pytest.mark.parametrize(("check_id", "spoil", "where"), SPOILT, ids=[f"{check_id}: {where}" for check_id, _, where in SPOILT])
def test_what_is_wrong_is_seen_and_named(check_id: str, spoil: Spoil, where: str) -> None:
    assert where in failed(check_id, spoil)


def test_a_failure_names_the_row() -> None:
    result = ask("d.policy_text", PolicyStack(changed("labels", lambda labels: np.full_like(labels, -100))), cases=[first("d.policy_text")])
    assert result.status is Status.FAIL
    assert "labels of 'plain'" in result.reason


def test_distributions_are_judged_beside_the_bits() -> None:
    """Another generator's bits with another bound: a hundredth more would pass, the bound of a = 1 does not."""
    rng = np.random.default_rng(1)
    peft = np.array(policy_numbers.golden("adapter")["scaled"])
    for width, passes in ((1.0, True), (np.sqrt(3), False)):
        drawn = width * rng.uniform(-1, 1, 12_000)
        limits = [policy_numbers.policy.dvoretzky_kiefer_wolfowitz(size, 1e-9) for size in (drawn.size, peft.size)]
        assert (policy_numbers._from_uniform(drawn) <= limits[0]) is passes
        assert (policy_numbers._between(drawn, peft) <= sum(limits)) is passes


def test_orders_that_follow_from_each_other_leave_too_many_rows_in_place() -> None:
    case = first("d.policy_order")
    assert isinstance(case, policy_order.OrderCase)
    rng = np.random.default_rng(2)

    def judged(epochs: list[list[int]]) -> Comparison:
        (found,) = policy_order._shuffled(case, epochs, [rng.permutation(23).tolist() for _ in epochs], 1e-9)
        return found

    independent = [rng.permutation(23).tolist() for _ in range(24)]
    assert judged(independent).passed
    assert not judged([independent[0]] * 24).passed
    assert not judged([[*one[:4], *range(4, 23)] for one in independent]).passed


def test_a_ledger_that_contradicts_itself_breaks_the_protocol() -> None:
    case = first("d.policy_text")
    assert isinstance(case, PolicyCase)
    asked = PolicyAsk(case=case, number=0)
    answer = asked.send(PolicyStack()).result().tensors  # type: ignore[arg-type]
    asked.require("fake", answer)
    shorter = {name: answer[name][:-1] for name in ("ids", "lengths", "shapes")}
    for broken in (*({name: array} for name, array in shorter.items()), {"ids": answer["ids"].astype(np.int32)}, {"more": answer["ids"]}):
        with pytest.raises(ProtocolBroken, match="broke the protocol"):
            asked.require("fake", answer | broken)
    with pytest.raises(ProtocolBroken, match="steps"):
        asked.require("fake", {name: array for name, array in answer.items() if name != "steps"})


def test_steps_are_read_back_as_they_were() -> None:
    case = first("d.policy_batches")
    assert isinstance(case, policy_batches.BatchesCase)
    tensors = PolicyAsk(case=case, number=0).send(PolicyStack()).result().tensors  # type: ignore[arg-type]
    steps = steps_of(tensors)
    assert [step.number for step in steps] == list(range(len(steps)))
    assert sum(batch.ids.size for step in steps for batch in step.batches) == tensors["ids"].size
    assert any(len(rows) > 1 for step in steps for batch in step.batches for rows in batch.sequences())


def test_the_golden_runs_reach_the_edges() -> None:
    runs = policy_text.text()["runs"]
    assert policy_text.count() == len(runs)
    assert {run["keeps"] for run in runs} == {None, "keep_start", "keep_end"}
    assert any(row["ids"] is None for run in runs for row in run["rows"])
    assert any(len(row["learned"]) > 1 for run in runs for row in run["rows"] if row["ids"])
    case = first("d.policy_schedule")
    assert isinstance(case, policy_schedule.ScheduleCase)
    assert case.total % 2 == 1  # it ends within an epoch
    assert set(policy_text.text()["made_with"]) == {"transformers", "trl", "tokenizers", "datasets"}
