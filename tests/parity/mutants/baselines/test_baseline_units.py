"""What is asked for the baselines: of every check that has a mutant, in a user's dtype, on its own inputs and on the ordinary one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from contract.worker.discover import StackInfo
from contract.worker.operation import expected_answer
from contract.worker.operations import OPERATIONS
from contract.worker.process import StackProcess
from parity.cells import Device
from parity.checks import registry
from parity.checks.check import Request
from parity.checks.graph_case import GraphCase
from parity.drawing import explore
from parity.mutants import catalogue
from parity.mutants.baselines import measuring, ordinary, seeing, taking, units
from parity.mutants.baselines.seeing import Sight
from parity.profiles import FIXED_SEED, PROFILES
from tests.parity.numpy_stack import CAPABILITIES, SPOILT, InProcess

CHECKS = {check.id: check for check in registry.CHECKS}
OF_OPERATIONS = [name for name, check in CHECKS.items() if check.operations]


def test_every_check_of_a_mutant_is_asked_or_is_one_of_files() -> None:
    for check in {mutant.check for mutant in catalogue.read_all().values()}:
        assert list(units.units(check)) or check in units.FILES


@pytest.mark.parametrize("check", list(CHECKS))
def test_no_unit_asks_in_float64_and_each_has_a_name_of_its_own(check: str) -> None:
    found = list(units.units(check))
    assert {plan.dtype for unit in found for plan in unit.check.plans} <= {"float32", "bfloat16"}
    names = [unit.check.id for unit in found]
    assert len(set(names)) == len(names)
    assert all(PROFILES[taking.PROFILE].asks(unit.check) for unit in found)


def test_a_check_in_float64_alone_is_asked_in_float32() -> None:
    hard = next(unit.check for unit in units.units("a.law_layer_norm") if unit.inputs == "hard")
    cases = []
    explore(hard, PROFILES["quick"], FIXED_SEED, lambda number, case, drawn: cases.append(case))
    (plan,) = hard.plans
    requests = plan.requests(cases[0])
    assert [id(request) for request in requests] == [id(request) for request in plan.requests(cases[0])]
    for request in requests:
        assert isinstance(request, Request)
        assert request.attrs["dtype"] == "float32"
        assert {array.dtype for array in request.tensors.values()} == {np.dtype(np.float32)}


def test_steps_in_float64_have_a_twin_in_float32() -> None:
    for check in (name for name in CHECKS if name.startswith("d.trajectory") and not name.endswith(("_float32", "_bfloat16"))):
        hard = next(unit.check for unit in units.units(check) if unit.inputs == "hard" and unit.what == ("tensors",))
        assert hard.id == f"{check}_float32"


@pytest.mark.parametrize("check", OF_OPERATIONS)
def test_the_ordinary_input_is_one_that_the_operation_takes(check: str) -> None:
    for op in CHECKS[check].operations:
        found = list(ordinary.requests(op, check))
        assert found
        for request in found:
            assert expected_answer(OPERATIONS[op], request.attrs, request.tensors)
            again = ordinary.tensors(op)
            assert all(np.array_equal(again[name], array) for name, array in request.tensors.items())


def test_the_ordinary_graph_is_freshly_initialised_with_an_adapter_that_does_nothing() -> None:
    needs = next(plan.graph for plan in CHECKS["c.llama_nf4"].plans if plan.graph is not None)
    case = ordinary.graph_case(dataclasses.replace(needs, nf4=False))
    assert isinstance(case, GraphCase)
    assert all(not matrix.any() for name, matrix in case.adapter.items() if name.endswith("lora_b"))
    assert all(matrix.any() for name, matrix in case.adapter.items() if name.endswith("lora_a"))
    assert case.batch.segments is None
    assert np.array_equal(case.batch.ids, case.batch.labels)
    assert case.plan.base is None
    quantized = ordinary.graph_case(needs)
    assert quantized.plan.base is not None
    assert quantized.plan.layout.hidden_size % quantized.plan.base.block_size == 0


def measured(folder: Path, spoilt: str) -> dict[str, dict[str, Sight]]:
    """What each rule makes of a matmul that is spoilt so, by inputs."""
    stacks = {"clean/bad": InProcess("bad"), "clean/good": InProcess("good"), "planted/bad": InProcess("bad", SPOILT[spoilt])}
    every = [unit for unit in units.units("a.matmul") if unit.what == ("tensors",)]
    for place, stack in stacks.items():
        info = StackInfo(name=stack.name, command=("nothing",), capabilities=CAPABILITIES)
        device = Device(info=info, name="CPU", dtypes=frozenset({"float32", "float64"}))
        for unit in every:
            taking.take(unit.check, device, cast("StackProcess", stack), folder / place)
    clean = {"bad": folder / "clean/bad", "good": folder / "clean/good"}
    planted = {**clean, "bad": folder / "planted/bad"}
    found = {}
    for unit in every:
        both = measuring.found(unit, ("bad", "good"), planted), measuring.found(unit, ("bad", "good"), clean)
        found[unit.inputs] = {rule: seeing.sight(rule, [both]) for rule in both[0]}
    return found


@pytest.mark.parametrize("spoilt", ["BF16", "NEGATED", "RAISES"])
def test_a_wrong_product_is_seen_and_the_right_one_is_not(tmp_path: Path, spoilt: str) -> None:
    found = measured(tmp_path, spoilt)
    for inputs in ("hard", "ordinary"):
        assert found[inputs]["assert_close"] is Sight.SEEN
        assert found[inputs]["loss curves"] is Sight.NOT_APPLICABLE


def test_a_right_product_is_missed_by_all(tmp_path: Path) -> None:
    found = measured(tmp_path, "CPU")
    for inputs in ("hard", "ordinary"):
        assert {found[inputs][rule] for rule in ("assert_close", "atol 1e-3", "Polygraphy")} == {Sight.MISSED}
