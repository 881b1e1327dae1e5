"""A step of a run travels: made again from what it was packed into, it gives the same numbers; hostile content is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from parity.checks import packed, trajectory_case
from parity.checks.packed import CanNotTravel, Packed
from parity.checks.trajectory_case import StepCase
from parity.checks.trajectory_run import PROXY


@pytest.fixture(scope="module")
def case() -> StepCase:
    return next(islice(trajectory_case.cases(PROXY, "float32"), 2, 3))


def test_a_step_that_travelled_is_the_same(case: StepCase) -> None:
    again = packed.unpack(case.pack())
    assert isinstance(again, StepCase)
    assert (again.name, again.dtype, again.step.number) == (case.name, case.dtype, case.step.number)
    assert {name: array.tobytes() for name, array in again.exact().items()} == {name: it.tobytes() for name, it in case.exact().items()}
    assert {name: it.tolist() for name, it in again.ledger().items()} == {name: it.tolist() for name, it in case.ledger().items()}
    assert sum(array.nbytes for array in case.pack().tensors.values() if isinstance(array, np.ndarray)) < 2**20


def test_a_step_of_a_users_own_files_stays_where_they_are(case: StepCase) -> None:
    with pytest.raises(CanNotTravel, match="the run's files"):
        dataclasses.replace(case, folder=None).pack()


def elsewhere(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    fields["contract"]["data"]["train_file"] = "/etc/passwd"


def resumed(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    fields["contract"]["exec"]["resume_from"] = "/etc"


def endless(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    fields["contract"]["exec"]["epochs"] = 2**31 - 1


def beyond(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    fields["number"] = 4


def no_rows(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["file.3"] = np.frombuffer(b"\xff{", np.uint8)


def no_model(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["file.1"] = tensors["file.1"][:100]


def other_state(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors["before.m.lm_head.lora_a"] = tensors["before.m.lm_head.lora_a"][:1]


def no_file(fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    del tensors["file.0"]


@pytest.mark.parametrize("change", [elsewhere, resumed, endless, beyond, no_rows, no_model, other_state, no_file])
def test_what_is_no_such_step_is_refused(change: Callable[[dict[str, Any], dict[str, Any]], None], case: StepCase) -> None:
    whole = case.pack()
    fields = {**whole.fields, "contract": {name: dict(it) if isinstance(it, dict) else it for name, it in whole.fields["contract"].items()}}
    tensors = dict(whole.tensors)
    change(fields, tensors)
    with pytest.raises((ValueError, KeyError)):
        packed.unpack(Packed(kind="step", fields=fields, tensors=tensors))
