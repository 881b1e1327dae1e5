"""Asks checks of tier D of stacks in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import registry
from parity.checks.check import Case, Check
from parity.engine import Engine
from parity.profiles import Profile
from parity.report.record import Result
from tests.parity.trajectory_stack import CAPABILITIES, TrajectoryStack

DTYPES = frozenset({"float32", "float64", "bfloat16"})


def check_of(check_id: str, chosen: Sequence[Case] | None = None) -> Check:
    """A check; chosen: of these cases, in place of its own."""
    check = next(check for check in registry.CHECKS if check.id == check_id)
    return check if chosen is None else dataclasses.replace(check, fixed_cases=lambda: iter(chosen), fixed_count=len(chosen))


def run(check: Check, *stacks: TrajectoryStack) -> Mapping[tuple[str, ...], Result]:
    """Question and stacks -> result. The cases' thresholds stay for the next test."""
    infos = [StackInfo(name=stack.name, command=("nothing",), capabilities=CAPABILITIES) for stack in stacks]
    devices = [Device(info=info, name="CPU", dtypes=DTYPES) for info in infos]
    cells = [cell for cell in matrix.matrix([check], devices) if cell.plan is not None]
    engine = Engine(
        cast("Mapping[str, StackProcess]", {stack.name: stack for stack in stacks}), {stack.name: CAPABILITIES for stack in stacks},
        profile=Profile(examples=1, alike=True), seed=1, rerun="--seed 1", statistical=100,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "forget", lambda self: None)
        return {(result.question, *result.stacks): result for result in engine.run(check, cells)}
