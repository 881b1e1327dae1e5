"""A stack that shows the shared policy, in this process: the contract's own, with what a test changes in an answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from contract.training import policy
from contract.worker.answers import Answer
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import registry
from parity.checks.check import Case
from parity.engine import Engine
from parity.profiles import Profile
from parity.report.record import Result
from tests.parity.numpy_stack import Done
from tests.parity.trajectory_stack import CAPABILITIES as TRAINS

CAPABILITIES = TRAINS.model_copy(update={"requests": (*TRAINS.requests, "policy")})

Arrays = dict[str, np.ndarray]
Spoil = Callable[[Arrays, int], Arrays]
"""(an answer's tensors, the number of the request in its case) -> what is answered in their place."""


class PolicyStack:
    """What the engine needs of a StackProcess."""

    def __init__(self, spoil: Spoil = lambda tensors, number: tensors) -> None:
        self.name, self.device, self._spoil = "fake", "CPU", spoil
        self.busy: list[tuple[int, int]] = []
        self.asked = 0

    def submit(self, request: str, values: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Done:
        """Answers at once."""
        assert request == "policy"
        started = time.monotonic_ns()
        reply = policy.answer(**values, tensors=dict(tensors))
        self.asked += 1
        spoilt = self._spoil({name: tensor.copy() for name, tensor in reply.tensors.items()}, self.asked - 1)
        return Done(Answer(reply.values, spoilt, (started, time.monotonic_ns())))


def ask(check_id: str, stack: PolicyStack, *, cases: list[Case] | None = None) -> Result:
    """A check's verdict on it; cases: in place of all of the check's own."""
    check = next(check for check in registry.CHECKS if check.id == check_id)
    if cases is not None:
        check = dataclasses.replace(check, fixed_cases=lambda: iter(cases), fixed_count=len(cases))
    info = StackInfo(name=stack.name, command=("nothing",), capabilities=CAPABILITIES)
    (cell,) = (cell for cell in matrix.matrix([check], [Device(info=info, name="CPU", dtypes=frozenset({"float64"}))]) if cell.plan)
    processes = cast("Mapping[str, StackProcess]", {stack.name: stack})
    profile = Profile(examples=1, alike=True)
    engine = Engine(processes, {stack.name: CAPABILITIES}, profile=profile, seed=1, rerun="--seed 1", statistical=1000)
    (result,) = engine.run(check, [cell])
    return result
