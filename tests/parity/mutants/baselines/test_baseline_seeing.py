"""What a rule is said to have seen: red with the bug on an input on which it is green without."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from contract.worker.answers import Answer, RequestFailed
from parity.capture.store import Outcome
from parity.checks import registry
from parity.mutants.baselines import seeing
from parity.mutants.baselines.seeing import Found, Sight
from parity.mutants.baselines.taking import Asked
from parity.mutants.baselines.units import Inputs, Unit, What

ERROR = RequestFailed("one", "ArithmeticError", "odd", "")


def unit(*, inputs: Inputs = "hard", what: tuple[What, ...] = ("tensors",), check: str = "a.matmul") -> Unit:
    return Unit(inputs=inputs, what=what, check=next(one for one in registry.CHECKS if one.id == check))


def answer(**tensors: object) -> Answer:
    return Answer({}, {name.replace("__", "."): np.asarray(value) for name, value in tensors.items()}, (0, 0))


def asked(first: Outcome, second: Outcome, *, example: int = 0) -> Asked:
    return Asked(example=example, request=0, case="c", first=first, second=second)


def failing(found: Mapping[str, Found]) -> set[str]:
    return {rule for rule, one in found.items() if one.failed}


def one(*, failed: tuple[int, ...], compared: tuple[int, ...] = (0, 1)) -> Mapping[str, Found]:
    return {"r": Found(compared={(example, 0, "y") for example in compared}, failed={(example, 0, "y") for example in failed})}


def test_a_bug_is_seen_on_an_input_that_is_green_without_it() -> None:
    assert seeing.sight("r", [(one(failed=(0, 1)), one(failed=(0,)))]) is Sight.SEEN


def test_a_test_that_is_red_anyway_has_seen_nothing() -> None:
    assert seeing.sight("r", [(one(failed=(0,)), one(failed=(0, 1)))]) is Sight.RED_ANYWAY


def test_a_rule_that_is_green_has_missed_it() -> None:
    assert seeing.sight("r", [(one(failed=()), one(failed=(1,)))]) is Sight.MISSED


def test_a_rule_that_nothing_was_compared_by_does_not_apply() -> None:
    assert seeing.sight("r", [(one(failed=(), compared=()), one(failed=()))]) is Sight.NOT_APPLICABLE
    assert seeing.sight("r", []) is Sight.NOT_APPLICABLE


def test_one_unit_that_sees_is_enough() -> None:
    missed, seen = (one(failed=()), one(failed=())), (one(failed=(1,)), one(failed=()))
    assert seeing.sight("r", [missed, seen]) is Sight.SEEN


def test_every_rule_on_tensors_is_asked_of_each_and_the_curves_of_none() -> None:
    y = np.ones(3, np.float32)
    found = seeing.found(unit(), [asked(answer(y=y * 2, z=y), answer(y=y, z=y))])
    assert failing(found) == {"assert_close", "rtol 1e-3", "atol 1e-3", "Polygraphy"}
    assert found["assert_close"].compared == {(0, 0, "y"), (0, 0, "z")}
    assert found["assert_close"].failed == {(0, 0, "y")}
    assert not found["loss curves"].compared


def test_the_gates_own_ledgers_are_left_out() -> None:
    found = seeing.found(unit(), [asked(answer(samples=np.array([1])), answer(samples=np.array([2])))])
    assert not any(one.compared for one in found.values())


def test_the_curves_are_asked_of_the_losses_in_the_order_of_steps() -> None:
    first = {f"step{number}__loss": 1.0 + number * (1.02 if number == 10 else 1) for number in range(11)}
    second = {f"step{number}__loss": 1.0 + number for number in range(11)}
    found = seeing.found(unit(what=("losses",)), [asked(answer(**first), answer(**second))])
    assert failing(found) == {"loss curves"}
    assert not failing(seeing.found(unit(what=("losses",)), [asked(answer(**second), answer(**second))]))


def test_an_error_of_one_side_alone_is_seen_by_all_that_are_asked() -> None:
    assert failing(seeing.found(unit(), [asked(ERROR, answer(y=1.0))])) == {"assert_close", "rtol 1e-3", "atol 1e-3", "Polygraphy"}
    assert failing(seeing.found(unit(what=("losses",)), [asked(answer(y=1.0), ERROR)])) == {"loss curves"}
    assert not failing(seeing.found(unit(), [asked(ERROR, ERROR)]))


def test_of_an_ordinary_graph_the_outputs_and_gradients_are_compared_and_no_tap() -> None:
    ordinary = dataclasses.replace(unit(check="c.llama"), inputs="ordinary")
    tensors = {"logits": np.ones(2), "loss": np.ones(()), "grad.layers.0.q_proj.lora_b": np.ones(2), "layers.0.q_rope": np.ones(2)}
    same = Answer({}, tensors, (0, 0))
    found = seeing.found(ordinary, [asked(same, same)])
    assert {tensor for _, _, tensor in found["assert_close"].compared} == {"logits", "loss", "grad.layers.0.q_proj.lora_b"}
    of_gate = seeing.found(unit(check="c.llama"), [asked(same, same)])
    assert len(of_gate["assert_close"].compared) == len(tensors)
