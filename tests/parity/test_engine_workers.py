"""The engine on workers that break: an error on the checks that they broke, while the others run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from contract.worker.process import StackProcess
from parity import engine as engine_module
from parity.checks import products, registry
from parity.report.record import Status, exit_code
from tests.parity.numpy_stack import InProcess
from tests.parity.test_engine import check_of, run, two

RAW_STACK = Path(__file__).parents[1] / "contract" / "worker" / "fake_stack.py"
NUMPY_STACK = Path(__file__).with_name("numpy_stack.py")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("MISSING", r"bad: broke the protocol: matmul answered a_grad as nothing, must be float"),
        ("EXTRA", r"bad: broke the protocol: matmul answered z as float\d\d\[.*\], must be nothing"),
        ("SHAPE", r"bad: broke the protocol: matmul answered y as float\d\d\[\d+\], must be float\d\d\[\d+, \d+\]"),
        ("DTYPE", r"bad: broke the protocol: matmul answered y as float16"),
        ("RAISES", r"bad: ArithmeticError: the sum is odd"),
    ],
)
def test_a_broken_answer_is_an_error_on_its_check_alone(spoil: str, message: str) -> None:
    results = run(two(spoil), check_of("a.matmul"), check_of("a.cross_entropy"))
    for result in results:
        if result.id == "a.matmul" and "bad" in result.stacks:
            assert result.status is Status.ERROR
            assert re.search(message, result.reason), result.reason
        elif result.id == "a.matmul":
            assert result.status is Status.PASS
            assert result.examples == 12 + len(products.SHAPES)
    assert exit_code(tuple(results), ()) == 3


def test_a_stack_that_answers_errors_is_asked_the_other_checks() -> None:
    stacks = two("RAISES")
    results = run(stacks, check_of("a.matmul"), check_of("a.cross_entropy"))
    assert {result.status for result in results if result.id == "a.cross_entropy"} == {Status.PASS}
    assert "cross_entropy" in stacks["bad"].asked


@pytest.fixture
def workers() -> Iterator[dict[str, StackProcess]]:
    commands = {"DIES": NUMPY_STACK, "HANGS": NUMPY_STACK, "RAW_GARBAGE": RAW_STACK}
    made = {
        device: StackProcess(device.lower(), (sys.executable, str(path)), device, request_seconds=1.0, start_seconds=60.0)
        for device, path in commands.items()
    }
    yield made
    for process in made.values():
        process.close()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("DIES", "the worker ended with exit code 7"),
        ("HANGS", "took over 1 s to answer compute, and was killed"),
        ("RAW_GARBAGE", "broke the protocol"),
    ],
)
def test_a_broken_worker_is_an_error_on_its_check_while_others_run(workers: dict[str, StackProcess], device: str, message: str) -> None:
    process = workers[device]
    process.start()
    stacks = {"good": InProcess("good"), process.name: process}
    results = run(stacks, check_of("a.matmul"), check_of("a.linear"))
    for result in results:
        if process.name not in result.stacks:
            assert result.status is Status.PASS
        elif result.id == "a.matmul" or device == "RAW_GARBAGE":
            assert result.status is Status.ERROR
            assert re.search(message, result.reason) or result.id != "a.matmul", result.reason
        else:
            assert result.status is Status.PASS, result.reason
    assert exit_code(tuple(results), ()) == 3


def test_a_worker_that_dies_again_and_again_is_given_up_on() -> None:
    class Dead(InProcess):
        def submit(self, request: str, values: Mapping[str, object], tensors: Mapping[str, np.ndarray]) -> object:  # type: ignore[override]
            self.asked.append(str(values["op"]))
            raise engine_module.HarnessError("dead: the worker ended")

    dead = Dead("dead")
    results = run({"dead": dead}, *registry.CHECKS[:7])
    assert {result.status for result in results} == {Status.ERROR}
    assert len(dead.asked) == engine_module.GIVE_UP_AFTER
    assert f"given up on after {engine_module.GIVE_UP_AFTER} failures" in results[-1].reason
